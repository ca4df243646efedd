/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The way out of the hold store: on the back of the skb that completed the frames (drain), or
 * in a run of the control plane once a checkpoint contains them (flush).
 */
#ifndef COLO_RELEASE_H
#define COLO_RELEASE_H

#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_delay_in.h"
#include "colo_flow.h"
#include "colo_hold.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_substitute.h"
#include "colo_verifier.h"
#include "colo_xmit.h"

#define COLO_DRAIN_MAX	COLO_CUTS	/* frames a run takes: a 64 KB segment meets 45 */
#define COLO_DRAIN_RUNS	8	/* of one carrier; the tap's backlog holds 1000 frames */

/*
 * How many bytes of the frame's payload are verified and have not left, from its start: whole
 * words, or 0. Its VM may be waiting for the client to acknowledge just these.
 */
static __always_inline __u32 colo_slot_part(struct colo_slot *slot, __u32 verified)
{
	__u32 part = (verified - slot->start) & ~3;

	if (!COLO_AFTER(verified, slot->start) || !COLO_AFTER(slot->end, verified) ||
	    !slot->data_off || !COLO_AFTER(slot->start + part, slot->part))
		return 0;
	return part;
}

/* Send the first `part` bytes of a held frame's payload; the frame stays what it was. */
static __always_inline int colo_emit_part(struct __sk_buff *skb, struct colo_config *conf, __u32 ix,
					  struct colo_slot *slot, struct colo_frame *frame,
					  __u32 part)
{
	__u64 l3 = slot->l3_off, l4 = slot->tcp_off;
	__u32 whole = slot->len;
	struct colo_length was, now;
	int six, result;

	if (colo_above(l3, COLO_HEAD_MAX) || colo_outside(l4, 1, COLO_HEAD_MAX))
		return -1;
	six = frame->data[l3] >> 4 == 6;
	colo_length_put(frame, &was, l3, l4, six, 1);
	now = was;
	now.flags &= ~(COLO_TCP_FIN | COLO_TCP_PSH);
	colo_length_set(&now, bpf_htons(slot->data_off - slot->l3_off - (six ? 40 : 0) + part));
	colo_length_put(frame, &now, l3, l4, six, 0);
	slot->len = slot->data_off + part;
	result = colo_emit(skb, conf, ix, slot, part);
	slot->len = whole;
	colo_length_put(frame, &was, l3, l4, six, 0);
	return result;
}

/* Take the flow's next frame that may leave, under its lock. Returns slot + 1 or 0. */
static __always_inline __u32 colo_drain_next(struct colo_flow *flow, struct colo_work *work,
					     __u32 *floor, __u32 *edge, __u32 *part)
{
	__u64 epoch = work->now.epoch;
	__u32 ref = 0, ix;
	struct colo_slot *slot;

	if (colo_flow_lock(flow, &work->flow, COLO_LOCK_AGAIN)) {
		/* Who has it looks at this behind its unlock, or has unlocked by the second try. */
		flow->more = 1;
		if (colo_flow_lock(flow, &work->flow, COLO_LOCK_AGAIN))
			return 0;
		flow->more = 0;
	}
	*floor = flow->floor;
	*part = 0;
	if (flow->epoch != epoch || !(flow->flags & COLO_F_ANCHORED))
		goto out;
	if (flow->head) {
		ix = flow->head - 1;
		slot = colo_hold.lookup(&ix);
		if (slot && slot->kind == COLO_SLOT_PARKED) {
			if (colo_park_lost(slot))
				colo_flow_forget(flow, slot);
		} else if (slot && slot->epoch == epoch &&
			   !COLO_AFTER(slot->end, flow->verified) && !colo_slot_claim(slot)) {
			ref = flow->head;
			*edge = colo_flow_edge(flow, slot->edge);
			colo_flow_pop(flow, slot);
		} else if (slot && slot->epoch == epoch && work->plan.part) {
			*part = colo_slot_part(slot, flow->verified);
			if (*part && !colo_slot_claim(slot)) {
				ref = flow->head;
				*edge = colo_flow_edge(flow, slot->edge);
				slot->part = slot->start + *part;
			}
		}
	}
	if (!ref && flow->ack_slot && flow->flags & COLO_F_HAS_FLOOR) {
		ix = flow->ack_slot - 1;
		slot = colo_hold.lookup(&ix);
		if (slot && colo_ack_due(flow, slot) && !colo_slot_claim(slot)) {
			ref = flow->ack_slot;
			*edge = colo_flow_edge(flow, slot->edge);
			flow->ack_slot = 0;
		}
	}
out:
	colo_unlock(&flow->lock);
	return ref;
}

/* The frame has left, with less than the PVM meant: what is to be told later is an ACK. */
static __always_inline int colo_drain_owes(struct colo_slot *slot, struct colo_frame *frame,
					   __u32 told, __u32 edge)
{
	__u32 seq = slot->end;

	if (!colo_ack_owed(slot, told, edge))
		return 0;
	if (slot->kind == COLO_SLOT_STREAM &&
	    (seq != slot->start + slot->bytes || colo_ack_make(slot, frame, seq)))
		return 0;
	if (slot->kind != COLO_SLOT_ACK)
		return 0;
	slot->start = edge;
	slot->end = told;
	return 1;
}

/* It waits, unless a newer one does. */
static __always_inline void colo_drain_keep(struct colo_flow *flow, struct colo_slot *slot,
					    __u32 ref)
{
	int keep = 0;

	if (!colo_flow_lock(flow, &slot->flow, COLO_LOCK_AGAIN)) {
		if (!flow->ack_slot && slot->gen == flow->gen) {
			flow->ack_slot = ref;
			flow->more |= colo_ack_due(flow, slot);	/* the SVM has got on meanwhile */
			keep = 1;
		}
		colo_unlock(&flow->lock);
	}
	if (!keep) {
		colo_slot_free(slot);
		return;
	}
	slot->at_ns = bpf_ktime_get_boot_ns();
	colo_slot_unclaim(slot);
}

/* A frame of which only a part was to leave is still in its flow's list. */
static __always_inline void colo_drain_failed(struct colo_slot *slot, __u32 part)
{
	if (part)
		colo_slot_unclaim(slot);
	else
		colo_slot_orphan(slot);
}

/*
 * Send what may leave of a flow, on the back of skb, which is used up. One CPU at a time per
 * flow (flow->emitter), so that the order holds; helpers are called without the lock. Returns 1 if
 * there may be more.
 */
static __always_inline int colo_drain_flow(struct __sk_buff *skb, struct colo_config *conf,
					    struct colo_flow *flow, struct colo_work *work)
{
	__u32 ref, ix, floor = 0, edge = 0, part = 0, sent = 0, told;
	struct colo_frame *frame;
	struct colo_slot *slot;
	int i;

	flow->more = 1;
	if (__sync_val_compare_and_swap(&flow->emitter, 0, 1))
		return 0;	/* who is sending looks once more */
	flow->more = 0;
	work->plan.done = 0;
	if (work->plan.whole)
		colo_whole_take(skb, flow, work);
	work->plan.whole = 0;
	if (work->plan.leaves && !work->plan.done)
		colo_whole_send(skb, conf, work);
	for (i = 0; i < COLO_DRAIN_MAX && !work->plan.done; i++) {
		ref = colo_drain_next(flow, work, &floor, &edge, &part);
		if (!ref)
			break;
		ix = ref - 1;
		slot = colo_hold.lookup(&ix);
		frame = colo_frames.lookup(&ix);
		if (!slot || !frame)
			break;
		if (!sent && colo_carrier_ready(skb)) {
			colo_drain_failed(slot, part);
			break;
		}
		told = colo_told(slot->ack, floor);
		colo_slot_lower(slot, frame, told, edge);
		if (part ? colo_emit_part(skb, conf, ix, slot, frame, part) :
			   colo_emit(skb, conf, ix, slot, slot->bytes)) {
			colo_count(COLO_PROG_DRAIN, COLO_V_HOLD, COLO_R_EMIT_FAILED, slot->len);
			colo_drain_failed(slot, part);
			break;
		}
		sent++;
		if (part) {
			colo_count(COLO_PROG_DRAIN, COLO_V_CARRY, COLO_R_PART, part);
			colo_slot_unclaim(slot);
			continue;
		}
		colo_count(COLO_PROG_DRAIN, COLO_V_CARRY, COLO_R_CARRIED, slot->len);
		if (colo_drain_owes(slot, frame, told, edge))
			colo_drain_keep(flow, slot, ref);
		else
			colo_slot_free(slot);
	}
	if (sent == COLO_DRAIN_MAX)
		flow->more = 1;
	__sync_val_compare_and_swap(&flow->emitter, 1, 0);
	if (sent)
		colo_live_add(COLO_LIVE_CARRIED, sent);
	if (work->plan.leaves && flow->more)
		colo_whole_send(skb, conf, work);
	return flow->more;
}

enum colo_flush_result {
	COLO_FLUSH_SKIP,	/* not due */
	COLO_FLUSH_SENT,
	COLO_FLUSH_LATER,	/* due, but busy or not its turn */
};

/*
 * There is no replica, or the frame is in a checkpoint it has loaded; while that one is not heard
 * it may serve already.
 */
static __always_inline int colo_slot_due(struct colo_now *now, struct colo_slot *slot)
{
	return now->mode == COLO_SOLO ||
	       (now->mode == COLO_PRIMARY && now->heard && slot->epoch != now->epoch);
}

/* A verified frame of this epoch that waits at the head of its flow. */
static __always_inline int colo_flush_verified(struct colo_slot *slot, struct colo_flow *flow)
{
	return slot->epoch == flow->epoch && flow->flags & COLO_F_ANCHORED &&
	       flow->flags & COLO_F_HAS_FLOOR && !COLO_AFTER(slot->end, flow->verified);
}

/* Under the flow's lock: claim the frame and take it out of its flow. */
static __always_inline int colo_flush_unlink(struct colo_work *work, struct colo_slot *slot,
					     struct colo_flow *flow, __u32 ref, int due)
{
	work->plan.lower = 0;
	if (!due) {
		if (slot->kind != COLO_SLOT_STREAM || !colo_flush_verified(slot, flow))
			return COLO_FLUSH_SKIP;
		work->plan.lower = 1;
		work->plan.ack = colo_told(slot->ack, flow->floor);
		work->plan.edge = colo_flow_edge(flow, slot->edge);
	}
	if (slot->kind == COLO_SLOT_STREAM) {
		if (flow->head != ref || flow->emitter || colo_slot_claim(slot))
			return COLO_FLUSH_LATER;
		colo_flow_pop(flow, slot);
		return COLO_FLUSH_SENT;
	}
	if (colo_slot_claim(slot))
		return COLO_FLUSH_LATER;
	if (flow->ack_slot == ref)
		flow->ack_slot = 0;
	return COLO_FLUSH_SENT;
}

/* What a secondary said: in the epoch whose state serves now, or nobody says it any more. */
static __always_inline int colo_flush_said(struct colo_config *conf, struct colo_work *work,
					   struct colo_slot *slot)
{
	int due = work->now.mode == COLO_SOLO && slot->epoch == conf->lasting_epoch;

	work->plan.lower = 0;
	if (colo_slot_claim(slot))
		return COLO_FLUSH_SKIP;
	if (due)
		return COLO_FLUSH_SENT;
	colo_slot_free(slot);
	return COLO_FLUSH_SKIP;
}

/* A parked frame leaves by itself, or it was lost on the way. */
static __always_inline int colo_flush_parked(struct colo_slot *slot, struct colo_flow *flow,
					     __u32 ref)
{
	if (!colo_park_lost(slot))
		return COLO_FLUSH_SKIP;
	if (flow && flow->gen == slot->gen) {
		if (colo_flow_lock(flow, &slot->flow, COLO_LOCK_AGAIN))
			return COLO_FLUSH_LATER;
		if (flow->head == ref)
			colo_flow_forget(flow, slot);
		colo_unlock(&flow->lock);
	} else if (!colo_slot_claim(slot)) {
		colo_slot_free(slot);
	}
	return COLO_FLUSH_SKIP;
}

/* Is the frame due, and is it ours to send? */
static __always_inline int colo_flush_take(struct colo_config *conf, struct colo_work *work,
					   struct colo_slot *slot, __u32 ref)
{
	int due = colo_slot_due(&work->now, slot);
	struct colo_flow *flow = 0;
	int result;

	if (slot->kind == COLO_SLOT_SAID)
		return colo_flush_said(conf, work, slot);
	if (slot->kind == COLO_SLOT_RESET) {	/* after the checkpoint, the SVM has it again */
		if (due && !colo_slot_claim(slot))
			colo_slot_free(slot);
		return COLO_FLUSH_SKIP;
	}
	if (slot->kind != COLO_SLOT_DGRAM)
		flow = colo_flows.lookup(&slot->flow);
	if (slot->kind == COLO_SLOT_PARKED)
		return colo_flush_parked(slot, flow, ref);
	if (!flow || flow->gen != slot->gen) {	/* in nobody's list */
		work->plan.lower = 0;
		if (!due)
			return COLO_FLUSH_SKIP;
		return colo_slot_claim(slot) ? COLO_FLUSH_LATER : COLO_FLUSH_SENT;
	}
	if (colo_flow_lock(flow, &slot->flow, COLO_LOCK_AGAIN))
		return COLO_FLUSH_LATER;
	result = colo_flush_unlink(work, slot, flow, ref, due);
	colo_unlock(&flow->lock);
	return result;
}

/* Send a claimed frame; -1: the tap refused it, it stays for the next run. */
static __always_inline int colo_flush_send(struct __sk_buff *skb, struct colo_config *conf,
					   struct colo_work *work, struct colo_slot *slot,
					   __u32 ix)
{
	struct colo_frame *frame = colo_frames.lookup(&ix);
	__u32 said = slot->kind == COLO_SLOT_SAID, len = slot->len;

	if (frame && work->plan.lower)
		colo_slot_lower(slot, frame, work->plan.ack, work->plan.edge);
	if (colo_emit(skb, conf, ix, slot, slot->bytes)) {
		colo_count(COLO_PROG_FLUSH, said ? COLO_V_DROP : COLO_V_HOLD, COLO_R_EMIT_FAILED,
			   len);
		if (said)
			colo_slot_free(slot);	/* its VM sends it again by itself */
		else
			colo_slot_orphan(slot);
		return -1;
	}
	colo_count(COLO_PROG_FLUSH, COLO_V_CARRY, said ? COLO_R_SAID_AGAIN : COLO_R_FLUSHED, len);
	colo_slot_free(slot);
	return 0;
}

#endif /* COLO_RELEASE_H */
