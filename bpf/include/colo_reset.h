/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both VMs reset a connection, or they have parted. The PVM's reset is held until the SVM's comes. The
 * SVM may be the first: then a slot without a frame waits in its place, so that the control plane finds
 * it among what is held, and asks for a checkpoint if it has become too old. Told at once if the PVM
 * says more than the SVM had by then.
 *
 * How often each says it is of no account: a segment that comes after the end is answered by a reset, and
 * of two segments that overtook each other only one VM may have seen the second after its end. So
 * while one is held others like it are dropped, and once one has left others follow it.
 */
#ifndef COLO_RESET_H
#define COLO_RESET_H

/*
 * A reset of both has left: nobody is told anything new by another, and the client waits for nothing.
 * `prog` counts what was held for it.
 */
static __always_inline void colo_reset_over(struct colo_work *work, __u32 prog)
{
	struct colo_flow *flow = colo_flows.lookup(&work->flow);

	if (!flow || colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS))
		return;
	flow->flags |= COLO_F_RESET | COLO_F_OVER;
	flow->c_gone = 1;
	colo_gone_empty(flow, prog);
	colo_unlock(&flow->lock);
}

/*
 * The connection is over on the PVM: what the SVM says of it is of no account any more. Returns 1 if it
 * was over on both before.
 */
static __always_inline int colo_pvm_reset(struct colo_conf *conf, struct colo_work *work)
{
	struct colo_flow *flow = colo_flows.lookup(&work->flow);
	struct colo_slot *slot;
	int over;
	__u32 ix;

	if (!flow || colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS))
		return 0;
	if (flow->epoch != work->now.epoch && work->now.phase == COLO_OPEN)
		colo_flow_turn(flow, work->now.epoch, conf->key[0]);
	over = flow->flags & COLO_F_OVER ? 1 : 0;
	flow->flags |= COLO_F_RESET;
	ix = flow->epoch == work->now.epoch ? flow->svm_reset - 1 : -1;	/* else: flushed perhaps */
	slot = colo_hold.lookup(&ix);
	if (slot && !colo_slot_claim(slot))
		colo_slot_free(slot);
	flow->svm_reset = 0;
	colo_unlock(&flow->lock);
	return over;
}

/* Under the flow's lock: wait for the PVM's. Returns how many more slots are held; -1: no room. */
static __always_inline int colo_svm_reset_wait(struct colo_conf *conf, struct colo_work *work,
					       struct colo_flow *flow)
{
	struct colo_slot *slot;
	__u32 ref, ix;

	if (flow->epoch != work->now.epoch)
		colo_flow_turn(flow, work->now.epoch, conf->key[0]);
	if (!(flow->flags & COLO_F_ANCHORED) || flow->flags & COLO_F_RESET || flow->svm_reset)
		return 0;
	ref = colo_hold_alloc(conf);
	ix = ref - 1;
	slot = colo_hold.lookup(&ix);
	if (!slot)
		return -1;
	slot->flow = work->flow;
	slot->kind = COLO_SLOT_RESET;
	slot->gen = flow->gen;
	slot->digest = work->digest;
	slot->end = work->pkt.seq;
	slot->ack = 0;
	slot->next = 0;
	slot->len = 0;
	flow->svm_reset = ref;
	return colo_hold_publish(slot, work->now.epoch, work->now.at_ns);
}

/* A reset of the SVM that the PVM has not sent. */
static __always_inline void colo_svm_reset(struct colo_conf *conf, struct colo_work *work)
{
	struct colo_flow *flow = colo_flows.lookup(&work->flow);
	int made;

	if (!flow || colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS))
		return;
	made = colo_svm_reset_wait(conf, work, flow);
	colo_unlock(&flow->lock);
	if (made > 0)
		colo_hold_count(conf, &work->flow, work->now.epoch, made);
	else if (made < 0)
		colo_tell(COLO_EV_STORE_FULL, COLO_R_STORE_FULL, &work->flow, IPPROTO_TCP,
			  work->now.epoch);
}

/* Under the flow's lock: the PVM has said what the SVM, which has reset, never will. */
static __always_inline void colo_reset_parted(struct colo_work *work, struct colo_flow *flow)
{
	if (!flow->svm_reset || work->step != COLO_STEP_HASH ||
	    !COLO_AFTER(work->end, flow->svm.next))
		return;
	work->plan.event = COLO_EV_SVM_RESET;
	flow->svm_reset = 0;	/* told; the slot stays until the checkpoint */
}

#endif /* COLO_RESET_H */
