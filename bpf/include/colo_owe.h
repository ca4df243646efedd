/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What left told the client less than the PVM meant (I2), and the PVM says it once. A client whose window
 * was closed by it, or whose bytes were not acknowledged by it, stands until its own timer fires, 200 ms at
 * least. So a copy of the headers stays, as the flow's pending ACK, until the SVM has got as far.
 */
#ifndef COLO_OWE_H
#define COLO_OWE_H

/*
 * The flow's pending ACK makes room for the frame in hand; -1: it acknowledges more, and stays. Under the
 * flow's lock.
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

/* A copy of the frame's headers: an ACK that follows it. -1: there is no room. */
static __always_inline int colo_owe_copy(struct __sk_buff *skb, struct colo_conf *conf,
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

/* Under the flow's lock, and with what the SVM has said meanwhile. */
static __always_inline void colo_owe_note(struct __sk_buff *skb, struct colo_conf *conf,
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

#endif /* COLO_OWE_H */
