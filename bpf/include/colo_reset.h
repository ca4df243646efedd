/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both VMs reset a connection, or they differ. The PVM's reset is held until the SVM's comes. If
 * the SVM's comes first, a slot without a frame is held in its place: the control plane sees how
 * old it is, and asks for a checkpoint in time. If the PVM sends bytes that the SVM had not sent
 * before its reset, the control plane is told at once.
 *
 * The number of resets does not matter. A VM answers each segment after the connection's end with a
 * reset, and two segments that overtook each other may reach one VM before its end and the other
 * one after. So while a reset is held, equal ones are dropped; once one has left, others may
 * follow.
 */
#ifndef COLO_RESET_H
#define COLO_RESET_H

#include <uapi/linux/in.h>

#include "colo_abi.h"
#include "colo_event.h"
#include "colo_flow.h"
#include "colo_hold.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_table.h"

/*
 * A reset of both VMs has left: another tells the client nothing new, and the client waits for
 * nothing. `prog` counts what was held and is dropped.
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

/* The PVM has ended the connection. Returns 1 if both VMs had ended it before. */
static __always_inline int colo_pvm_reset(struct colo_config *conf, struct colo_work *work)
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
	ix = flow->epoch == work->now.epoch ? flow->svm_reset - 1 : -1;	/* of a past epoch: none */
	slot = colo_hold.lookup(&ix);
	if (slot && !colo_slot_claim(slot))
		colo_slot_free(slot);
	flow->svm_reset = 0;
	colo_unlock(&flow->lock);
	return over;
}

/* Under the flow's lock: wait for the PVM's. Returns how many more slots are held; -1: no room. */
static __always_inline int colo_svm_reset_wait(struct colo_config *conf, struct colo_work *work,
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
static __always_inline void colo_svm_reset(struct colo_config *conf, struct colo_work *work)
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

/* Under the flow's lock: the PVM has sent bytes that the SVM, which has reset, never will. */
static __always_inline void colo_reset_parted(struct colo_work *work, struct colo_flow *flow)
{
	if (!flow->svm_reset || work->step != COLO_STEP_HASH ||
	    !COLO_AFTER(work->end, flow->svm.next))
		return;
	work->plan.event = COLO_EV_SVM_RESET;
	flow->svm_reset = 0;	/* told; the slot stays until the checkpoint */
}

#endif /* COLO_RESET_H */
