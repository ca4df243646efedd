/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One TCP segment of the SVM. It verifies what the PVM's frames hold, and may leave in their
 * place (colo_substitute.h). Runs under flow->lock.
 */
#ifndef COLO_SVM_H
#define COLO_SVM_H

#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_flow.h"
#include "colo_hold.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_stream.h"
#include "colo_verifier.h"

/* The time an ACK may be on its way to the SVM: half of TCP's least retransmission timeout. */
#define COLO_ACK_TRAVELS_NS	100000000ULL

/* The SVM resends what the client has acknowledged: it missed an input. Told once an epoch. */
static __always_inline void colo_svm_resend(struct colo_work *work, struct colo_flow *flow)
{
	colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_OLD);
	if (!flow->c_known || COLO_AFTER(work->end, flow->c_ack) ||
	    bpf_ktime_get_boot_ns() - flow->c_acked_ns < COLO_ACK_TRAVELS_NS)
		return;
	if (flow->s_resends < 2 && ++flow->s_resends == 2)
		work->plan.event = COLO_EV_MISSED_INPUT;
}

/*
 * The bytes before this segment were lost on the link. The SVM's TCP resends them after 200 ms at
 * the earliest, and may send new bytes first (F-RTO, RFC 5682). A checkpoint is faster: it is asked
 * for, once an epoch.
 */
static __always_inline void colo_svm_gap(struct colo_work *work, struct colo_flow *flow)
{
	colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_GAP);
	if (!(flow->flags & (COLO_F_SVM_GAP | COLO_F_BAD)))
		work->plan.event = COLO_EV_GAP;
	flow->flags |= COLO_F_SVM_GAP;
}

static __always_inline void colo_svm_syn(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_pkt *pkt = &work->pkt;

	/* A repeated SYN. In a simultaneous open it now acknowledges the other end's SYN. */
	if (!(flow->flags & COLO_F_SVM_SYN) && flow->s_isn == pkt->seq &&
	    flow->flags & COLO_F_PVM_SYN && !colo_flow_syn_waits(flow)) {
		if (pkt->flags & COLO_TCP_ACK)
			work->plan.drain = colo_flow_svm_ack(flow, pkt->ack, pkt->window);
		colo_plan_set(&work->plan, COLO_V_NOTE, COLO_R_OLD);
		return;
	}
	flow->s_isn = pkt->seq;
	flow->flags |= COLO_F_SVM_SYN;
	flow->s_syn_ack = pkt->flags & COLO_TCP_ACK ? pkt->ack : 0;
	flow->s_scale = work->offer.scale;
	flow->s_offer = work->offer.sum;
	colo_plan_set(&work->plan, COLO_V_NOTE, COLO_R_AHEAD);
	if (!colo_flow_syn_waits(flow) || !colo_flow_match_syn(&work->plan, flow))
		return;
	colo_plan_set(&work->plan, COLO_V_NOTE, COLO_R_VERIFIED);
	work->plan.drain = 1;
}

/*
 * The two VMs cut their streams at different places, and both wait for an ACK of the client: no
 * segment of one ends where the other has a digest. So the bytes themselves are compared, from
 * where the first held frame is not verified yet.
 */
static __always_inline void colo_svm_meet(struct __sk_buff *skb, struct colo_work *work,
					  struct colo_buf *buf, struct colo_flow *flow)
{
	__u32 from = flow->verified, seq = work->pkt.seq, ix = flow->head - 1;
	struct colo_frame *frame = colo_frames.lookup(&ix);
	struct colo_slot *slot = colo_hold.lookup(&ix);
	__u64 off, len, left;
	int i;

	if (!slot || !frame || slot->epoch != flow->epoch || flow->flags & COLO_F_BAD ||
	    !(flow->flags & COLO_F_ANCHORED) || colo_flow_syn_waits(flow))
		return;
	if (COLO_AFTER(slot->start, from) || from - slot->start >= slot->bytes ||
	    COLO_AFTER(seq, from) || from - seq >= work->pkt.len)
		return;
	off = slot->data_off + (from - slot->start);
	len = colo_min(work->pkt.len - (from - seq), slot->bytes - (from - slot->start));
	if (colo_outside(len, 1, COLO_DATA_MAX))
		return;
	if (bpf_skb_load_bytes(skb, work->pkt.payload + (from - seq), buf->word, len))
		return;
	left = len;
#pragma nounroll
	for (i = 0; i < COLO_DATA_MAX / 8 + 1; i++) {
		__u64 at = off + i * 8, ours, bytes;

		if (!left || colo_above(at, COLO_FRAME_MAX - 8))
			break;
		bytes = colo_min(left, 8);
		__builtin_memcpy(&ours, &frame->data[at], 8);
		if ((ours ^ buf->word[i]) & ~colo_from_byte(bytes))
			break;
		left -= bytes;
	}
	flow->verified = from + len - left;
	work->plan.drain = work->plan.part = 1;
	if (!left)
		return;
	flow->flags |= COLO_F_BAD;
	colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_MISMATCH);
	work->plan.event = COLO_EV_MISMATCH;
	work->plan.offset = from + len - left;
}

static __always_inline void colo_svm_bytes(struct __sk_buff *skb, struct colo_work *work,
					   struct colo_buf *buf, struct colo_flow *flow)
{
	struct colo_plan *plan = &work->plan;

	if (!(flow->flags & COLO_F_ANCHORED)) {
		colo_plan_set(plan, COLO_V_DROP, COLO_R_NOT_ANCHORED);
		return;
	}
	if (!COLO_AFTER(work->end, flow->svm.next)) {
		colo_svm_resend(work, flow);
		return;
	}
	if (COLO_AFTER(work->pkt.seq, flow->svm.next)) {
		colo_svm_gap(work, flow);
		return;
	}
	if (flow->flags & COLO_F_BAD) {
		colo_plan_set(plan, COLO_V_DROP, COLO_R_MISMATCH);
		return;
	}
	work->before = flow->verified;
	work->step = COLO_STEP_HASH;
	colo_cuts(skb, work);
	colo_cut_first(work, flow->svm.next);
	if (!colo_walk_load(skb, work, buf, flow, &flow->svm)) {
		colo_stops_svm(work, flow);
	} else {
		work->step = COLO_STEP_DONE;
		colo_plan_set(plan, COLO_V_DROP, COLO_R_TOO_BIG);
	}
}

/* Does the segment begin before what its VM has sent already? */
static __always_inline int colo_svm_resends(struct colo_work *work, struct colo_flow *flow)
{
	return work->pkt.len && COLO_AFTER(flow->svm.next, work->pkt.seq);
}

static __always_inline void colo_svm_prepare(struct __sk_buff *skb, struct colo_config *conf,
					     struct colo_work *work, struct colo_buf *buf,
					     struct colo_flow *flow)
{
	struct colo_pkt *pkt = &work->pkt;

	work->end = pkt->seq + pkt->len + (pkt->flags & COLO_TCP_FIN ? 1 : 0);
	if (flow->epoch != work->now.epoch)
		colo_flow_turn(flow, work->now.epoch, conf->key[0]);
	work->resent = colo_svm_resends(work, flow);
	if (pkt->flags & COLO_TCP_SYN) {
		colo_svm_syn(work, flow);
		return;
	}
	if (pkt->flags & COLO_TCP_ACK)
		work->plan.drain = colo_flow_svm_ack(flow, pkt->ack, pkt->window);
	if (work->end == pkt->seq)
		colo_plan_set(&work->plan, COLO_V_NOTE,
			      work->plan.drain ? COLO_R_ACK_RAISED : COLO_R_ACK);
	else
		colo_svm_bytes(skb, work, buf, flow);
}

/* When was the frame held that is verified now? Its flow's first, if all of it is. */
static __always_inline __u64 colo_svm_held_ns(struct colo_flow *flow)
{
	__u32 ix = flow->head - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);

	if (!slot || slot->epoch != flow->epoch || COLO_AFTER(slot->end, flow->verified))
		return 0;
	return slot->at_ns;
}

static __always_inline void colo_svm_conclude(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_plan *plan = &work->plan;

	if (work->step != COLO_STEP_HASH)
		return;
	colo_side_store(&work->walk, &flow->svm);
	colo_walk_result(work, flow, 0);
	flow->unmet = work->walk.held;
	if (flow->flags & COLO_F_BAD) {
		colo_plan_set(plan, COLO_V_DROP, COLO_R_MISMATCH);
	} else if (COLO_AFTER(work->end, flow->pvm.next)) {
		colo_bounds_svm(work, flow);
		colo_plan_set(plan, COLO_V_NOTE, COLO_R_AHEAD);
	} else {
		colo_plan_set(plan, COLO_V_NOTE, COLO_R_VERIFIED);
		plan->whole = work->walk.met == work->end && work->walk.from == work->pkt.seq &&
			      !(work->pkt.flags & COLO_TCP_FIN);
	}
	if (flow->verified != work->before) {
		plan->drain = 1;
		work->held_ns = colo_svm_held_ns(flow);
	}
}

#endif /* COLO_SVM_H */
