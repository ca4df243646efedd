/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One TCP connection as the primary sees it: what both VMs have produced, how far it is
 * verified, which frames wait. Everything here runs under flow->lock, and decides without
 * touching the host; the programs carry it out.
 */
#ifndef COLO_FLOW_H
#define COLO_FLOW_H

#include "colo_abi.h"
#include "colo_hold.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_stream.h"

static __always_inline void colo_plan_set(struct colo_plan *plan, __u32 verdict, __u32 reason)
{
	plan->verdict = verdict;
	plan->reason = reason;
}

/*
 * A proven turn: both VMs now are what the PVM was. All bytes below p_high are in the
 * checkpoint, so both sides hash from exactly there; and the SVM has received what the PVM had
 * acknowledged, never what the SVM of the past epoch had: that one is gone.
 * Done at the first frame after the turn, before the frame moves p_high or p_ack.
 */
static __always_inline void colo_flow_turn(struct colo_flow *flow, __u64 epoch, __u64 key)
{
	__u32 flags = flow->flags & (COLO_F_HAS_HIGH | COLO_F_HAS_ACK | COLO_F_PVM_SYN |
				     COLO_F_PVM_SCALE | COLO_F_PVM_FIN | COLO_F_RESET);

	if (flags & COLO_F_HAS_HIGH)
		flags |= COLO_F_ANCHORED;
	if (flags & COLO_F_HAS_ACK)
		flags |= COLO_F_HAS_FLOOR;
	if (flags & COLO_F_RESET)
		flags |= COLO_F_OVER;
	flow->epoch = epoch;
	flow->flags = flags;
	flow->anchor = flow->p_high;
	flow->verified = flow->p_high;
	flow->floor = flow->p_ack;
	flow->s_scale = flow->p_scale;
	flow->s_resends = 0;
	flow->bounds = 0;
	flow->stride = 0;
	flow->unmet = 0;
	flow->svm_reset = 0;
	colo_side_begin(&flow->pvm, key, flow->p_high);
	colo_side_begin(&flow->svm, key, flow->p_high);
}

/*
 * The PVM opens a connection on this tuple. Its SYN is the stream's first byte: verified ends
 * before it until the SVM has sent its own. Held frames of an older connection are
 * orphaned by the new generation; the next flush sends them.
 */
static __always_inline void colo_flow_begin(struct colo_flow *flow, struct colo_now *now,
					    __u64 key, __u32 isn)
{
	flow->flags &= COLO_F_SVM_SYN;
	flow->c_known = 0;
	flow->c_gone = 0;
	flow->flags |= COLO_F_PVM_SYN;
	flow->gen++;
	flow->isn = isn;
	flow->head = 0;
	flow->tail = 0;
	flow->held = 0;
	flow->ack_slot = 0;
	flow->bounds = 0;
	flow->stride = 0;
	flow->unmet = 0;
	flow->svm_reset = 0;
	flow->unparked = 0;
	flow->rounds = 0;
	if (now->phase == COLO_TURNING || now->mode == COLO_SOLO)
		return;	/* anchored by the next proven turn */
	flow->flags |= COLO_F_ANCHORED;
	flow->anchor = isn + 1;
	flow->verified = isn;
	colo_side_begin(&flow->pvm, key, isn + 1);
	colo_side_begin(&flow->svm, key, isn + 1);
}

/* The PVM has sent its SYN in this epoch and the SVM's is not matched with it. */
static __always_inline int colo_flow_syn_waits(struct colo_flow *flow)
{
	return (flow->flags & COLO_F_PVM_SYN) && (flow->flags & COLO_F_ANCHORED) &&
	       flow->verified == flow->isn;
}

/*
 * Both SYNs are there: if they answer the same SYN of the client, and offer the same for the
 * connection's life (a SYN cookie of one side may leave options out), it is verified.
 */
static __always_inline int colo_flow_match_syn(struct colo_plan *plan, struct colo_flow *flow)
{
	__u32 p_ack = flow->flags & COLO_F_HAS_ACK ? flow->p_ack : 0;

	if (!(flow->flags & COLO_F_SVM_SYN) || flow->s_syn_ack != p_ack)
		return 0;
	if (flow->s_offer != flow->p_offer) {
		flow->flags |= COLO_F_BAD;
		plan->event = COLO_EV_MISMATCH;
		plan->offset = flow->isn;
		plan->pvm_digest = flow->p_offer;
		plan->svm_digest = flow->s_offer;
		return 0;
	}
	flow->verified = flow->isn + 1;
	flow->flags &= ~COLO_F_SVM_SYN;
	if (flow->flags & COLO_F_HAS_ACK) {
		flow->floor = p_ack;
		flow->flags |= COLO_F_HAS_FLOOR;
	}
	return 1;
}

/* The window edge that may be shown: the smaller of both sides'. */
static __always_inline __u32 colo_flow_edge(struct colo_flow *flow, __u32 edge)
{
	if (flow->flags & COLO_F_HAS_EDGE && COLO_AFTER(edge, flow->s_edge))
		return flow->s_edge;
	return edge;
}

/*
 * The client may be told now what it was not told before: more is acknowledged, or its window is
 * twice as wide, from when on Linux' own receiver finds that worth a segment.
 */
static __always_inline int colo_ack_due(struct colo_flow *flow, struct colo_slot *slot)
{
	__u32 edge = colo_flow_edge(flow, slot->edge);

	return COLO_AFTER(flow->floor, slot->end) ||
	       (COLO_AFTER(edge, slot->start) && edge - slot->start >= slot->start - slot->end);
}

static __always_inline int colo_flow_owes(struct colo_flow *flow)
{
	__u32 ix = flow->ack_slot - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);

	return slot && colo_ack_due(flow, slot);
}

/* I2: an ACK of the SVM, in this epoch, raises the floor. Returns 1 if the client is to be told. */
static __always_inline int colo_flow_svm_ack(struct colo_flow *flow, __u32 ack, __u16 window)
{
	int raised = 0;

	if (!(flow->flags & COLO_F_ANCHORED) || colo_flow_syn_waits(flow))
		return 0;
	if (!(flow->flags & COLO_F_HAS_FLOOR) || COLO_AFTER(ack, flow->floor)) {
		flow->floor = ack;
		flow->flags |= COLO_F_HAS_FLOOR;
		raised = 1;
	}
	if (flow->flags & COLO_F_PVM_SCALE && !COLO_AFTER(flow->floor, ack)) {
		flow->s_edge = ack + ((__u32)window << (flow->s_scale & 15));
		flow->flags |= COLO_F_HAS_EDGE;
	}
	return raised || colo_flow_owes(flow);
}

static __always_inline __u32 colo_flow_scale(struct colo_flow *flow)
{
	return flow->flags & COLO_F_PVM_SCALE ? flow->p_scale : COLO_NO_SCALE;
}

/* Put slot ref - 1 before the flow's held frames. */
static __always_inline void colo_flow_prepend(struct colo_flow *flow, struct colo_slot *slot,
					      __u32 ref)
{
	slot->next = flow->head;
	flow->head = ref;
	if (!flow->tail)
		flow->tail = ref;
	flow->held++;
}

/* Append slot ref - 1 to the flow's held frames. */
static __always_inline void colo_flow_append(struct colo_flow *flow, struct colo_slot *slot,
					     __u32 ref)
{
	__u32 ix = flow->tail - 1;
	struct colo_slot *tail;

	if (flow->tail) {
		tail = colo_hold.lookup(&ix);
		if (tail)
			tail->next = ref;
	} else {
		flow->head = ref;
	}
	flow->tail = ref;
	flow->held++;
	if (!flow->unmet && slot->digest && COLO_AFTER(slot->end, flow->svm.next))
		flow->unmet = ref;
}

#endif /* COLO_FLOW_H */
