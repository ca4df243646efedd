/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One TCP segment of the SVM: it never leaves itself, it verifies what the PVM's frames
 * hold. Runs under flow->lock.
 */
#ifndef COLO_SVM_H
#define COLO_SVM_H

/* The SVM resends what the client has acknowledged: it missed an input. Told once an epoch. */
static __always_inline void colo_svm_resend(struct colo_work *work, struct colo_flow *flow)
{
	colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_OLD);
	if (!flow->c_known || COLO_AFTER(work->end, flow->c_ack))
		return;
	if (flow->s_resends < 2 && ++flow->s_resends == 2)
		work->plan.event = COLO_EV_MISSED_INPUT;
}

static __always_inline void colo_svm_syn(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_pkt *pkt = &work->pkt;

	/* Its SYN again; where both ends open at once, now with the ACK of the other's. */
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
	if (COLO_AFTER(work->pkt.seq, flow->svm.next)) {	/* lost on the link: it will resend */
		colo_plan_set(plan, COLO_V_DROP, COLO_R_GAP);
		return;
	}
	if (flow->flags & COLO_F_BAD) {
		colo_plan_set(plan, COLO_V_DROP, COLO_R_MISMATCH);
		return;
	}
	work->before = flow->verified;
	work->step = COLO_STEP_HASH;
	if (!colo_walk_load(skb, work, buf, flow, &flow->svm)) {
		colo_stops_svm(work, flow);
	} else {
		work->step = COLO_STEP_DONE;
		colo_plan_set(plan, COLO_V_DROP, COLO_R_TOO_BIG);
	}
}

static __always_inline void colo_svm_prepare(struct __sk_buff *skb, struct colo_conf *conf,
					     struct colo_work *work, struct colo_buf *buf,
					     struct colo_flow *flow)
{
	struct colo_pkt *pkt = &work->pkt;

	work->end = pkt->seq + pkt->len + (pkt->flags & COLO_TCP_FIN ? 1 : 0);
	if (flow->epoch != work->now.epoch)
		colo_flow_turn(flow, work->now.epoch, conf->key[0]);
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
		colo_flow_bound(flow, work->stop[(work->walk.stops - 1) & (COLO_STOPS - 1)].digest,
				work->end);
		colo_plan_set(plan, COLO_V_NOTE, COLO_R_AHEAD);
	} else {
		colo_plan_set(plan, COLO_V_NOTE, COLO_R_VERIFIED);
	}
	if (flow->verified != work->before)
		plan->drain = 1;
}

#endif /* COLO_SVM_H */
