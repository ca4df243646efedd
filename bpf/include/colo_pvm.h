/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One TCP segment of the PVM: prepare (what is to be done), hash, conclude (pass or hold).
 * Runs under flow->lock.
 */
#ifndef COLO_PVM_H
#define COLO_PVM_H

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
	plan->ack = COLO_AFTER(pkt->ack, flow->floor) ? flow->floor : pkt->ack;
	plan->edge = colo_flow_edge(flow, edge);
	plan->lower = plan->ack != pkt->ack || plan->edge != edge;
}

static __always_inline void colo_pvm_hold_as(struct colo_work *work, __u32 kind, __u32 reason)
{
	colo_plan_set(&work->plan, COLO_V_HOLD, reason);
	work->kind = kind;
	work->step = COLO_STEP_HOLD;
	work->digest = 0;
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
	work->end = flow->floor;	/* the highest ACK the client was given */
}

/* New bytes: load them for the walk, which stops at the SVM's boundaries. */
static __always_inline void colo_pvm_load(struct __sk_buff *skb, struct colo_conf *conf,
					  struct colo_work *work, struct colo_flow *flow)
{
	__u32 phase = (flow->pvm.next - flow->anchor) & 7;

	colo_stops_of_svm(work, flow, work->end, flow->pvm.next - phase);
	work->step = COLO_STEP_HASH;
	if (!colo_segment_load(skb, work, flow, &flow->pvm, conf->key[1]))
		return;
	flow->flags |= COLO_F_BAD;
	work->plan.event = COLO_EV_GAP;
	colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_TOO_BIG);
}

/* Output that counts: payload, SYN or FIN, in an open epoch. */
static __always_inline void colo_pvm_bytes(struct __sk_buff *skb, struct colo_conf *conf,
					   struct colo_work *work, struct colo_flow *flow,
					   int fresh)
{
	struct colo_plan *plan = &work->plan;
	struct colo_pkt *pkt = &work->pkt;
	__u32 end = work->end;

	if (!(flow->flags & COLO_F_ANCHORED)) {
		colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_NOT_ANCHORED);
		return;
	}
	if (fresh)
		colo_flow_match_syn(flow);
	if (!COLO_AFTER(end, flow->verified)) {
		if (work->now.may_release &&
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
		/* Held already; unless a frame found no room, then any copy may be the one. */
		if (flow->flags & COLO_F_LOST)
			colo_pvm_hold_as(work, COLO_SLOT_STREAM, COLO_R_HELD_AGAIN);
		else
			colo_plan_set(plan, COLO_V_DROP, COLO_R_HELD_AGAIN);
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
	colo_pvm_load(skb, conf, work, flow);
}

static __always_inline void colo_pvm_prepare(struct __sk_buff *skb, struct colo_conf *conf,
					     struct colo_work *work, struct colo_flow *flow)
{
	struct colo_now *now = &work->now;
	struct colo_pkt *pkt = &work->pkt;
	__u32 syn = pkt->flags & COLO_TCP_SYN ? 1 : 0;
	__u32 fin = pkt->flags & COLO_TCP_FIN ? 1 : 0;
	int open = now->phase == COLO_OPEN && now->mode != COLO_SOLO, fresh = 0;

	work->end = pkt->seq + pkt->len + syn + fin;
	flow->seen_ns = bpf_ktime_get_boot_ns();
	if (open && flow->epoch != now->epoch)
		colo_flow_turn(flow, now->epoch, conf->key[0]);
	if (syn && !(flow->flags & COLO_F_PVM_SYN && flow->isn == pkt->seq)) {
		colo_flow_begin(flow, now, conf->key[0], pkt->seq);
		flow->p_scale = work->scale;
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
		colo_pvm_bytes(skb, conf, work, flow, fresh);
}

/* A slot for the frame; the flow's one pending ACK is overwritten (newest wins). */
static __always_inline __u32 colo_pvm_slot(struct colo_conf *conf, struct colo_work *work,
					   struct colo_flow *flow)
{
	__u32 ref = flow->ack_slot, ix = ref - 1;
	struct colo_slot *slot;

	if (work->kind != COLO_SLOT_ACK || !ref)
		return colo_hold_alloc(conf);
	slot = colo_hold.lookup(&ix);
	if (!slot || colo_slot_claim(slot))
		return colo_hold_alloc(conf);
	return ref;
}

static __always_inline void colo_pvm_hold(struct __sk_buff *skb, struct colo_conf *conf,
					  struct colo_work *work, struct colo_flow *flow)
{
	__u32 ref = colo_pvm_slot(conf, work, flow), ix = ref - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);
	struct colo_pkt *pkt = &work->pkt;

	if (!ref || !slot || colo_hold_copy(skb, ref)) {
		flow->flags |= COLO_F_LOST;
		colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_STORE_FULL);
		work->plan.event = COLO_EV_STORE_FULL;
		if (ref && slot)
			slot->state = COLO_SLOT_FREE;
		return;
	}
	slot->flow = work->flow;
	slot->kind = work->kind;
	slot->end = work->end;
	slot->digest = work->digest;
	slot->gen = flow->gen;
	slot->tcp_off = pkt->flags & COLO_TCP_ACK ? pkt->l4 + slot->len - skb->len : 0;
	slot->ack = pkt->ack;
	slot->scale = flow->flags & COLO_F_PVM_SCALE ? flow->p_scale : COLO_NO_SCALE;
	slot->edge = colo_pvm_edge(flow, pkt);
	if (work->kind == COLO_SLOT_STREAM)
		colo_flow_append(flow, ref);
	else
		flow->ack_slot = ref;
	colo_hold_publish(conf, slot, work->now.epoch);
}

static __always_inline void colo_pvm_conclude(struct __sk_buff *skb, struct colo_conf *conf,
					      struct colo_work *work, struct colo_flow *flow)
{
	struct colo_plan *plan = &work->plan;

	if (work->step == COLO_STEP_HASH) {
		colo_side_store(work, &flow->pvm);
		colo_walk_result(work, flow, 1);
		colo_bounds_trim(work, flow);
		work->step = COLO_STEP_HOLD;
		work->kind = COLO_SLOT_STREAM;
		if (COLO_AFTER(work->end, flow->verified)) {
			colo_plan_set(plan, COLO_V_HOLD, COLO_R_UNVERIFIED);
		} else if (work->now.may_release && flow->flags & COLO_F_HAS_FLOOR &&
			   !flow->head && !flow->emitter) {
			work->step = COLO_STEP_DONE;
			colo_pvm_pass(work, flow, COLO_R_VERIFIED);
		} else {
			colo_plan_set(plan, COLO_V_HOLD, COLO_R_ORDER);
			plan->drain = work->now.may_release;
		}
	}
	if (work->step == COLO_STEP_HOLD)
		colo_pvm_hold(skb, conf, work, flow);
}

#endif /* COLO_PVM_H */
