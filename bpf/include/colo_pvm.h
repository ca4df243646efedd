/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One TCP segment of the PVM: prepare (what is to be done), hash, conclude (pass or hold).
 * Runs under flow->lock.
 */
#ifndef COLO_PVM_H
#define COLO_PVM_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_delay_in.h"
#include "colo_event.h"
#include "colo_flow.h"
#include "colo_hold.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_stream.h"
#include "colo_verifier.h"

/* The PVM's sequence space as it will stand when the epoch ends: kept in every mode. */
static __always_inline void colo_pvm_track(struct colo_flow *flow, struct colo_pkt *pkt,
					   __u32 end)
{
	if (!(flow->flags & COLO_F_HAS_HIGH) || COLO_AFTER(end, flow->p_high)) {
		flow->p_high = end;
		flow->flags |= COLO_F_HAS_HIGH;
	}
	if (!(pkt->flags & COLO_TCP_ACK))
		return;
	if (!(flow->flags & COLO_F_HAS_ACK) || COLO_AFTER(pkt->ack, flow->p_ack)) {
		flow->p_ack = pkt->ack;
		flow->flags |= COLO_F_HAS_ACK;
	}
}

static __always_inline __u32 colo_pvm_edge(struct colo_flow *flow, struct colo_pkt *pkt)
{
	return pkt->ack + ((__u32)pkt->window << (flow->p_scale & 15));
}

/* The frame passes as it is, but for its ACK and window (I2). */
static __always_inline void colo_pvm_pass(struct colo_work *work, struct colo_flow *flow,
					  __u32 reason)
{
	struct colo_plan *plan = &work->plan;
	struct colo_pkt *pkt = &work->pkt;
	__u32 edge = colo_pvm_edge(flow, pkt);

	colo_plan_set(plan, COLO_V_PASS, reason);
	if (!(pkt->flags & COLO_TCP_ACK) || pkt->flags & COLO_TCP_SYN)
		return;	/* a SYN passes only when both SYNs answer the same */
	plan->ack = colo_told(pkt->ack, flow->floor);
	plan->edge = colo_flow_edge(flow, edge);
	plan->lower = plan->ack != pkt->ack || plan->edge != edge;
}

static __always_inline void colo_pvm_hold_as(struct colo_work *work, __u32 kind, __u32 reason)
{
	colo_plan_set(&work->plan, COLO_V_HOLD, reason);
	work->kind = kind;
	work->step = COLO_STEP_HOLD;
}

/* A segment without payload, SYN or FIN: only its ACK matters (I2). */
static __always_inline void colo_pvm_ack(struct colo_work *work, struct colo_flow *flow)
{
	if (work->now.may_release && flow->flags & COLO_F_HAS_FLOOR &&
	    !COLO_AFTER(work->pkt.ack, flow->floor)) {
		colo_pvm_pass(work, flow, COLO_R_ACK);
		return;
	}
	colo_pvm_hold_as(work, COLO_SLOT_ACK, COLO_R_ACK_FLOOR);
	work->end = flow->floor;	/* the highest ACK the client has got */
}

/* New bytes: load them for the walk, which stops at the SVM's boundaries and at the cuts. */
static __always_inline void colo_pvm_load(struct __sk_buff *skb, struct colo_work *work,
					  struct colo_buf *buf, struct colo_flow *flow)
{
	work->step = COLO_STEP_HASH;
	colo_cut_first(work, flow->pvm.next);
	if (!(flow->flags & COLO_F_LOST))	/* the cuts before it are held */
		work->cut = work->walk.cut;
	if (!colo_walk_load(skb, work, buf, flow, &flow->pvm)) {
		colo_stops_pvm(work, flow);
		return;
	}
	flow->flags |= COLO_F_BAD;
	work->plan.event = COLO_EV_GAP;
	colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_TOO_BIG);
}

/* A verified SYN that now acknowledges (both ends opened at once) what the SVM has not. */
static __always_inline int colo_pvm_syn_early(struct colo_pkt *pkt, struct colo_flow *flow)
{
	return pkt->flags & COLO_TCP_ACK &&
	       (!(flow->flags & COLO_F_HAS_FLOOR) || COLO_AFTER(pkt->ack, flow->floor));
}

/*
 * The PVM resends bytes of which the last is not verified. The verified ones leave, however often:
 * the ones that left before may be lost, and both VMs may be waiting for an ACK of just these. Of a
 * GSO frame its first cut does; the client's ACK brings the next.
 */
static __always_inline void colo_pvm_again(struct colo_work *work, struct colo_flow *flow)
{
	__u32 verified = flow->verified - work->pkt.seq;

	work->plan.drain = work->now.may_release;
	if (work->now.may_release && flow->flags & COLO_F_HAS_FLOOR && (__s32)verified > 0) {
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_HELD_AGAIN);
		work->again = 1;
		work->cuts = 2;
		work->cut_bytes = colo_min(work->cut_bytes, verified);
	} else if (flow->flags & COLO_F_LOST) {
		/* A frame found no room: any copy may be the one. */
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_HELD_AGAIN);
	} else {
		colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_HELD_AGAIN);
	}
}

/* Output that counts: payload, SYN or FIN, in an open epoch. */
static __always_inline void colo_pvm_bytes(struct __sk_buff *skb, struct colo_work *work,
					   struct colo_buf *buf, struct colo_flow *flow, int fresh)
{
	struct colo_plan *plan = &work->plan;
	struct colo_pkt *pkt = &work->pkt;
	__u32 end = work->end;

	if (!(flow->flags & COLO_F_ANCHORED)) {
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_NOT_ANCHORED);
		return;
	}
	if (fresh)
		colo_flow_match_syn(plan, flow);
	if (!COLO_AFTER(end, flow->verified)) {
		if (pkt->flags & COLO_TCP_SYN && colo_pvm_syn_early(pkt, flow)) {
			colo_pvm_hold_as(work, COLO_SLOT_ACK, COLO_R_ACK_FLOOR);
			work->end = pkt->ack - 1;
		} else if (work->now.may_release &&
			   (flow->flags & COLO_F_HAS_FLOOR || pkt->flags & COLO_TCP_SYN))
			colo_pvm_pass(work, flow, fresh ? COLO_R_VERIFIED : COLO_R_OLD);
		else
			colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_WITHHELD);
		return;
	}
	if (fresh) {
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_UNVERIFIED);
		return;
	}
	if (!COLO_AFTER(end, flow->pvm.next)) {
		colo_pvm_again(work, flow);
		return;
	}
	if (flow->flags & COLO_F_BAD) {
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_MISMATCH);
		return;
	}
	if (COLO_AFTER(pkt->seq, flow->pvm.next)) {
		colo_plan_set(plan, COLO_V_DROP, COLO_R_GAP);
		plan->event = COLO_EV_GAP;
		return;
	}
	colo_pvm_load(skb, work, buf, flow);
}

static __always_inline void colo_pvm_prepare(struct __sk_buff *skb, struct colo_config *conf,
					     struct colo_work *work, struct colo_buf *buf,
					     struct colo_flow *flow)
{
	struct colo_now *now = &work->now;
	struct colo_pkt *pkt = &work->pkt;
	__u32 syn = pkt->flags & COLO_TCP_SYN ? 1 : 0;
	__u32 fin = pkt->flags & COLO_TCP_FIN ? 1 : 0;
	int open = now->phase == COLO_OPEN && now->mode != COLO_SOLO, fresh = 0;

	work->end = pkt->seq + pkt->len + syn + fin;
	colo_cuts(skb, work);
	flow->seen_ns = now->at_ns;
	/* A reset before only answered a stray segment: the connection lives. */
	flow->flags &= ~(COLO_F_RESET | COLO_F_OVER);
	if (open && flow->epoch != now->epoch)
		colo_flow_turn(flow, now->epoch, conf->key[0]);
	if (syn && !(flow->flags & COLO_F_PVM_SYN && flow->isn == pkt->seq)) {
		colo_flow_begin(flow, now, conf->key[0], pkt->seq);
		flow->p_scale = work->offer.scale;
		flow->p_offer = work->offer.sum;
		flow->flags |= COLO_F_PVM_SCALE;
		fresh = 1;
	}
	if (fin)
		flow->flags |= COLO_F_PVM_FIN;
	colo_pvm_track(flow, pkt, work->end);
	if (now->mode == COLO_SOLO)
		colo_plan_set(&work->plan, COLO_V_PASS, COLO_R_SOLO);
	else if (work->end == pkt->seq)
		colo_pvm_ack(work, flow);
	else if (!open)
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_TURNING);
	else
		colo_pvm_bytes(skb, work, buf, flow, fresh);
}

/* What has to be known of the slot's frame when it leaves. */
static __always_inline void colo_pvm_label(struct colo_work *work, struct colo_flow *flow,
					   struct colo_slot *slot, struct colo_copy *copy)
{
	struct colo_pkt *pkt = &work->pkt;

	slot->flow = work->flow;
	slot->kind = work->kind;
	slot->gen = flow->gen;
	slot->next = 0;
	slot->len = copy->head + copy->tag + copy->len;
	slot->tcp_off = pkt->flags & COLO_TCP_ACK ? pkt->l4 + copy->tag : 0;
	slot->ack = pkt->ack;
	slot->scale = colo_flow_scale(flow);
	slot->edge = colo_pvm_edge(flow, pkt);
	slot->l3_off = pkt->l3 + copy->tag;
	slot->data_off = pkt->payload + copy->tag;
}

/* Copy cut number work->cut to the slot and make it a frame of its own. */
static __always_inline int colo_pvm_copy(struct __sk_buff *skb, struct colo_work *work,
					 struct colo_flow *flow, struct colo_slot *slot, __u32 ref)
{
	struct colo_pkt *pkt = &work->pkt;
	__u32 ix = ref - 1, cut = work->cut, skip = cut * work->cut_bytes;
	__u32 last = cut + 1 >= work->cuts, tcp_len;
	struct colo_frame *frame = colo_frames.lookup(&ix);
	struct colo_copy copy = { .head = pkt->payload };

	if (!frame)
		return -1;
	copy.from = pkt->payload + skip;
	copy.len = last ? pkt->len - skip : work->cut_bytes;
	tcp_len = pkt->payload - pkt->l4 + copy.len;
	if (colo_hold_copy(skb, frame, &copy))
		return -1;
	if (work->cuts > 1) {
		colo_cut_ip(frame, pkt, pkt->l3 + copy.tag, tcp_len, cut);
		colo_cut_tcp(frame, pkt->l4 + copy.tag, pkt->seq + skip, !cut, last);
	}
	colo_pvm_label(work, flow, slot, &copy);
	if (!slot->tcp_off)
		colo_hold_sum(frame, pkt, copy.tag, tcp_len, IPPROTO_TCP);
	slot->start = slot->part = pkt->seq + skip;
	slot->bytes = last ? pkt->len - skip : copy.len;
	slot->end = last ? work->end : pkt->seq + skip + copy.len;
	return 0;
}

static __always_inline int colo_pvm_hold_cut(struct __sk_buff *skb, struct colo_config *conf,
					     struct colo_work *work, struct colo_flow *flow)
{
	__u32 ref = work->reuse, ix;
	struct colo_slot *slot;

	if (!ref)
		ref = colo_hold_alloc(conf);
	ix = ref - 1;
	slot = colo_hold.lookup(&ix);
	if (!slot)
		return -1;
	work->reuse = 0;
	if (colo_pvm_copy(skb, work, flow, slot, ref)) {
		slot->state = COLO_SLOT_FREE;
		return -1;
	}
	slot->digest = work->cut_digest[work->cut & (COLO_CUTS - 1)];
	work->made += colo_hold_publish(slot, work->now.epoch, work->now.at_ns);
	if (work->kind == COLO_SLOT_ACK) {
		flow->ack_slot = ref;
		slot->start = slot->edge;
	} else if (work->again) {
		colo_flow_prepend(flow, slot, ref);
		work->cut = work->cuts - 1;
	} else {
		colo_flow_append(flow, slot, ref);
	}
	return 0;
}

/* The flow's one pending ACK is overwritten: the newest wins. */
static __always_inline void colo_pvm_hold_ack(struct colo_work *work, struct colo_flow *flow)
{
	__u32 ref = flow->ack_slot, ix = ref - 1;
	struct colo_slot *slot;

	slot = colo_hold.lookup(&ix);
	if (slot && !colo_slot_claim(slot))
		work->reuse = ref;
}

static __always_inline void colo_pvm_hold(struct __sk_buff *skb, struct colo_config *conf,
					  struct colo_work *work, struct colo_flow *flow)
{
	int i;

	work->made = 0;
	work->reuse = 0;
	if (flow->c_gone && work->now.phase == COLO_OPEN) {
		flow->flags |= COLO_F_LOST;
		colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_CLIENT_GONE);
		work->kind = COLO_SLOT_STREAM;
		work->cut = work->cuts;	/* none is left */
	}
	if (work->kind == COLO_SLOT_ACK)
		colo_pvm_hold_ack(work, flow);
#pragma nounroll
	for (i = 0; i < COLO_CUTS; i++) {
		COLO_FORGET();
		if (work->cut >= work->cuts || colo_pvm_hold_cut(skb, conf, work, flow))
			break;
		work->cut++;
	}
	colo_hold_count(conf, &work->flow, work->now.epoch, work->made);
	if (work->cut >= work->cuts)
		return;
	flow->flags |= COLO_F_LOST;
	if (work->cuts > COLO_CUTS || work->cut_bytes > COLO_DATA_MAX) {
		colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_TOO_BIG);
		return;
	}
	colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_STORE_FULL);
	work->plan.event = COLO_EV_STORE_FULL;
}

/* The SVM passed the frame's end long ago, and the flow has no bound left just there. */
static __always_inline void colo_pvm_behind(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_walk *walk = &work->walk;
	struct colo_stop *last = &work->stop[(walk->stops - 1) & (COLO_STOPS - 1)];
	__u32 end = walk->base + walk->limit;

	if (flow->flags & COLO_F_BAD || !COLO_AFTER(end, flow->verified) ||
	    COLO_AFTER(end, flow->svm.next) || !colo_ahead_has(flow, last->digest, end))
		return;
	flow->verified = walk->met = end;
}

static __always_inline void colo_pvm_conclude(struct __sk_buff *skb, struct colo_config *conf,
					      struct colo_work *work, struct colo_flow *flow)
{
	struct colo_plan *plan = &work->plan;

	if (work->step == COLO_STEP_HASH) {
		colo_side_store(&work->walk, &flow->pvm);
		colo_walk_result(work, flow, 1);
		colo_bounds_pass(flow, work->walk.bound);
		colo_pvm_behind(work, flow);
		work->kind = COLO_SLOT_STREAM;
		if (COLO_AFTER(work->end, flow->verified)) {
			colo_plan_set(plan, COLO_V_HOLD, COLO_R_UNVERIFIED);
			plan->drain = work->now.may_release && work->walk.met != work->walk.from;
		} else if (work->now.may_release && flow->flags & COLO_F_HAS_FLOOR &&
			   !flow->head && !flow->emitter && !colo_park_now(flow)) {
			work->step = COLO_STEP_DONE;
			colo_pvm_pass(work, flow, COLO_R_VERIFIED);
		} else {
			colo_plan_set(plan, COLO_V_HOLD, COLO_R_ORDER);
			plan->drain = work->now.may_release;
		}
		if (work->step != COLO_STEP_DONE && colo_park_wanted(conf, work, flow))
			colo_park_in(skb, conf, work, flow);
	}
	if (work->step != COLO_STEP_DONE)
		colo_pvm_hold(skb, conf, work, flow);
}

/* Lower ACK and window of the frame in hand (I2). */
static __always_inline int colo_skb_lower(struct __sk_buff *skb, struct colo_work *work)
{
	__u32 from = bpf_htonl(work->pkt.ack), to = bpf_htonl(work->plan.ack);
	__u16 was = bpf_htons(work->pkt.window);
	__u16 now = bpf_htons(colo_window(work->plan.ack, work->plan.edge, work->scale,
					  work->pkt.window));
	__u32 l4 = work->pkt.l4;

	if (from != to && (bpf_l4_csum_replace(skb, l4 + 16, from, to, 4) ||
			   bpf_skb_store_bytes(skb, l4 + 8, &to, 4, 0)))
		return -1;
	if (was != now && (bpf_l4_csum_replace(skb, l4 + 16, was, now, 2) ||
			   bpf_skb_store_bytes(skb, l4 + 14, &now, 2, 0)))
		return -1;
	return 0;
}

/* After the unlock: lower the frame's ACK and window if need be, and count the frame. */
static __always_inline void colo_pvm_told(struct __sk_buff *skb, struct colo_work *work,
					  __u32 prog)
{
	if (work->plan.lower && colo_skb_lower(skb, work))
		colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_MALFORMED);
	colo_count(prog, work->plan.verdict, work->plan.reason, skb->len);
}

/*
 * A released frame may tell the client less than the PVM meant (I2), and the PVM does not repeat
 * it. A client whose window stayed closed, or whose bytes were not acknowledged, waits for its own
 * timer, 200 ms at least. So a copy of the frame's headers is kept as the flow's pending ACK, until
 * the SVM has acknowledged as much.
 */

/*
 * Under the flow's lock: free the pending ACK, which the frame in hand replaces. -1: the pending
 * one acknowledges more, and stays.
 */
static __always_inline int colo_owe_clear(struct colo_flow *flow, struct colo_work *work)
{
	__u32 ix = flow->ack_slot - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);

	if (slot && COLO_AFTER(slot->ack, work->plan.ack))
		return -1;
	if (slot && !colo_slot_claim(slot))
		colo_slot_free(slot);
	flow->ack_slot = 0;
	return 0;
}

/* Keep a copy of the frame's headers as a pure ACK that follows it. -1: there is no room. */
static __always_inline int colo_owe_copy(struct __sk_buff *skb, struct colo_config *conf,
					 struct colo_work *work, struct colo_flow *flow)
{
	struct colo_pkt *pkt = &work->pkt;
	struct colo_copy copy = { .head = pkt->payload, .from = pkt->payload };
	__u32 ref = colo_hold_alloc(conf), ix = ref - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);
	struct colo_frame *frame = colo_frames.lookup(&ix);

	if (!slot || !frame)
		return -1;
	work->kind = COLO_SLOT_ACK;
	if (colo_hold_copy(skb, frame, &copy)) {
		slot->state = COLO_SLOT_FREE;
		return -1;
	}
	colo_pvm_label(work, flow, slot, &copy);
	if (pkt->len)
		colo_ack_make(slot, frame, pkt->seq + pkt->len);
	slot->digest = 0;
	slot->bytes = 0;
	slot->start = work->plan.edge;
	slot->end = work->plan.ack;
	colo_hold_count(conf, &work->flow, work->now.epoch,
			colo_hold_publish(slot, work->now.epoch, work->now.at_ns));
	flow->ack_slot = ref;
	return 0;
}

/* Under the flow's lock, with what the SVM has acknowledged by now. */
static __always_inline void colo_owe_note(struct __sk_buff *skb, struct colo_config *conf,
					  struct colo_work *work, struct colo_flow *flow)
{
	struct colo_plan *plan = &work->plan;
	struct colo_pkt *pkt = &work->pkt;
	__u32 edge = colo_pvm_edge(flow, pkt);

	if (!work->now.may_release || plan->reason == COLO_R_FLUSHED ||
	    !(pkt->flags & COLO_TCP_ACK) || pkt->flags & (COLO_TCP_SYN | COLO_TCP_FIN))
		return;
	plan->ack = colo_told(pkt->ack, flow->floor);
	plan->edge = colo_flow_edge(flow, edge);
	plan->lower = plan->ack != pkt->ack || plan->edge != edge;
	if (colo_owe_clear(flow, work))
		return;
	if (!flow->c_gone && (COLO_AFTER(pkt->ack, plan->ack) ||
			      colo_window_owed(plan->ack, plan->edge, edge)))
		colo_owe_copy(skb, conf, work, flow);
}

#endif /* COLO_PVM_H */
