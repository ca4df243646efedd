/* SPDX-License-Identifier: GPL-2.0-only */
/* The end of the delay line: what becomes of a parked frame. Runs under flow->lock. */
#ifndef COLO_DELAY_OUT_H
#define COLO_DELAY_OUT_H

#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_delay_in.h"
#include "colo_flow.h"
#include "colo_hash.h"
#include "colo_hold.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_pvm.h"
#include "colo_release.h"
#include "colo_scratch.h"
#include "colo_stream.h"

/* The slot of the frame in hand, with `pkt` and `flow` filled; 0: the frame is not parked. */
static __always_inline struct colo_slot *colo_unpark_slot(struct __sk_buff *skb,
							  struct colo_work *work)
{
	__u32 ix = (skb->mark & COLO_PARK_REF) - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);
	struct colo_pkt *pkt = &work->pkt;

	if ((skb->mark & ~COLO_PARK_REF) != COLO_PARK_MARK || !slot ||
	    slot->state != COLO_SLOT_HELD || slot->kind != COLO_SLOT_PARKED ||
	    colo_parse(skb, pkt) || !colo_is_tcp(pkt) || slot->start != pkt->seq)
		return 0;
	pkt->nic = slot->flow.nic;
	colo_key_from_vm(pkt, &work->flow);
	if (slot->flow.client_port != work->flow.client_port ||
	    slot->flow.client[3] != work->flow.client[3])
		return 0;	/* another frame has the slot now */
	work->parked = ix + 1;
	work->end = slot->end;
	return slot;
}

/* Both VMs have produced the frame in this epoch, and it may be released. */
static __always_inline int colo_unpark_verified(struct colo_work *work, struct colo_flow *flow,
						struct colo_slot *slot)
{
	return work->now.may_release && slot->epoch == work->now.epoch &&
	       flow->epoch == slot->epoch && flow->flags & COLO_F_ANCHORED &&
	       flow->flags & COLO_F_HAS_FLOOR && !COLO_AFTER(slot->end, flow->verified);
}

/* The frame leaves; the next of its flow may follow. */
static __always_inline void colo_unpark_pass(struct colo_work *work, struct colo_flow *flow,
					     struct colo_slot *slot, int due)
{
	struct colo_slot *next;
	__u32 ix;

	if (due)
		colo_plan_set(&work->plan, COLO_V_PASS, COLO_R_FLUSHED);
	else
		colo_pvm_pass(work, flow, COLO_R_VERIFIED);
	colo_flow_pop(flow, slot);
	colo_slot_free(slot);
	flow->rounds = 0;
	work->parked = 0;
	ix = flow->head - 1;
	next = colo_hold.lookup(&ix);
	work->plan.drain = work->now.may_release &&
			   ((next && next->kind != COLO_SLOT_PARKED &&
			     !COLO_AFTER(next->end, flow->verified)) || flow->ack_slot);
}

/* Where the SVM stands inside the frame, if that is the end of a cut. */
static __always_inline void colo_unpark_meet(struct colo_work *work, struct colo_flow *flow)
{
	__u32 some = flow->svm.next - work->pkt.seq, cut;

	if (flow->flags & COLO_F_BAD || !(flow->flags & COLO_F_ANCHORED) || !some ||
	    some >= work->pkt.len || some % work->cut_bytes)
		return;
	cut = some / work->cut_bytes - 1;
	if (work->cut_digest[cut & (COLO_CUTS - 1)] !=
	    colo_lanes_digest(flow->svm.lane, flow->svm.part, work->walk.key))
		return;
	if (COLO_AFTER(flow->svm.next, flow->verified))
		flow->verified = flow->svm.next;
	work->plan.drain = work->now.may_release;
}

/*
 * The SVM has not caught up: hold the frame, as the cuts it stands for. The first cut takes over
 * the parked frame's slot and its place in the list, the others follow.
 */
static __always_inline void colo_unpark_hold(struct __sk_buff *skb, struct colo_config *conf,
					     struct colo_work *work, struct colo_flow *flow,
					     struct colo_slot *slot)
{
	__u32 ref = work->parked, ix = ref - 1, next = slot->next, tail = flow->tail;
	struct colo_frame *frame = colo_frames.lookup(&ix);
	__u64 epoch = work->now.epoch;
	struct colo_slot *last;

	work->parked = 0;
	flow->unparked = COLO_PARK_NOT;
	colo_plan_set(&work->plan, COLO_V_HOLD, COLO_R_UNVERIFIED);
	colo_cuts(skb, work);
	if (!frame)
		return;
	__builtin_memcpy(work->cut_digest, frame->data, sizeof(work->cut_digest));
	if (slot->epoch == flow->epoch)
		colo_unpark_meet(work, flow);
	work->kind = COLO_SLOT_STREAM;
	if (colo_pvm_copy(skb, work, flow, slot, ref)) {
		colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_TOO_BIG);
		return;
	}
	slot->digest = work->cut_digest[0];
	flow->tail = ref;
	if (flow->unmet == ref && !COLO_AFTER(slot->end, flow->svm.next))
		flow->unmet = 0;
	work->cut = 1;
	work->now.epoch = slot->epoch;
	colo_pvm_hold(skb, conf, work, flow);
	work->now.epoch = epoch;
	ix = flow->tail - 1;
	last = colo_hold.lookup(&ix);
	if (last)
		last->next = next;
	if (next)
		flow->tail = tail;
}

/*
 * A parked frame recirculates for at most 10 ms, in which an SVM without a processor may get one.
 * It is 4 ms if the SVM's position lies inside the frame: the SVM may be waiting for an ACK of just
 * those bytes.
 */
static __always_inline __u64 colo_unpark_limit(struct colo_flow *flow, struct colo_slot *slot)
{
	return COLO_AFTER(flow->svm.next, slot->start) && COLO_AFTER(slot->end, flow->svm.next) ?
		COLO_PARK_STUCK_NS : COLO_PARK_NS;
}

static __always_inline void colo_unpark(struct __sk_buff *skb, struct colo_config *conf,
					struct colo_work *work, struct colo_flow *flow,
					struct colo_slot *slot)
{
	int first = flow->head == work->parked, due = colo_slot_due(&work->now, slot);

	if (flow->gen != slot->gen || (work->now.mode != COLO_PAIRING &&
				       work->now.mode != COLO_PRIMARY &&
				       work->now.mode != COLO_SOLO)) {
		if (first)
			colo_flow_pop(flow, slot);
		if (!colo_slot_claim(slot))
			colo_slot_free(slot);
		work->parked = 0;
		colo_plan_set(&work->plan, COLO_V_DROP,
			      flow->gen != slot->gen ? COLO_R_OLD : COLO_R_WITHHELD);
		return;
	}
	if (first && !flow->emitter && (due || colo_unpark_verified(work, flow, slot)) &&
	    !colo_slot_claim(slot)) {
		colo_unpark_pass(work, flow, slot, due);
		return;
	}
	if (bpf_ktime_get_boot_ns() - slot->at_ns < colo_unpark_limit(flow, slot)) {
		colo_park_again(work, flow, first);
		return;
	}
	colo_unpark_hold(skb, conf, work, flow, slot);
}

#endif /* COLO_DELAY_OUT_H */
