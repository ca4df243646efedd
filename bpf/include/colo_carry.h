/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The last two of the five functions that handle a frame: conclude, under the lock of the flow,
 * and carry out. More than one program ends with them.
 */
#ifndef COLO_CARRY_H
#define COLO_CARRY_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_delay_in.h"
#include "colo_event.h"
#include "colo_flow.h"
#include "colo_lock.h"
#include "colo_packet.h"
#include "colo_pvm.h"
#include "colo_release.h"
#include "colo_reset.h"
#include "colo_scratch.h"
#include "colo_substitute.h"
#include "colo_svm.h"
#include "colo_xmit.h"

/*
 * Programs that others call. The verifier looks at a million instructions per program, so that not
 * all can be one. The loader fills the table.
 */
#define COLO_CALL_DRAIN		0
#define COLO_CALL_ENTER		1
#define COLO_CALL_PVM		2
#define COLO_CALL_SVM		3
#define COLO_CALL_PVM_RST	4
#define COLO_CALL_SVM_RST	5
#define COLO_CALL_OWE		6
#define COLO_CALL_PVM_LONG	7
#define COLO_CALL_SVM_LONG	8

BPF_PROG_ARRAY(colo_calls, 9);

/* The frame is hashed: conclude under the flow's lock, unlock, carry out. */
static __always_inline int colo_pvm_end(struct __sk_buff *skb, struct colo_config *conf,
					struct colo_work *work, struct colo_flow *flow)
{
	colo_pvm_conclude(skb, conf, work, flow);
	colo_reset_parted(work, flow);
	work->scale = colo_flow_scale(flow);
	colo_unlock(&flow->lock);
	/* After the unlock: a CPU that found the lock taken has set `more` before it gave up. */
	if (flow->more && work->plan.verdict != COLO_V_PASS)
		work->plan.drain = work->now.may_release;

	if (work->plan.event)
		colo_plan_event(work);
	if (work->plan.verdict == COLO_V_PASS && (work->plan.lower || flow->ack_slot))
		colo_calls.call(skb, COLO_CALL_OWE);
	colo_pvm_told(skb, work, COLO_PROG_CMP_PVM);
	if (work->parked) {
		skb->mark = COLO_PARK_MARK | work->parked;
		if (!work->plan.drain)
			return colo_line_send(skb, conf, COLO_LINE_NEW);
		skb->priority = COLO_LINE_NEW;
		bpf_clone_redirect(skb, conf->park_ifindex, 0);
	}
	if (work->plan.drain)
		colo_calls.call(skb, COLO_CALL_DRAIN);
	return colo_action(work->plan.verdict);
}

/* The frame is hashed: conclude under the flow's lock, unlock, carry out. */
static __always_inline int colo_svm_end(struct __sk_buff *skb, struct colo_config *conf,
					struct colo_work *work, struct colo_buf *buf,
					struct colo_flow *flow)
{
	colo_svm_conclude(work, flow);
	if (work->resent && flow->head)
		colo_svm_meet(skb, work, buf, flow);
	if (work->plan.whole && work->now.may_release)
		colo_whole_alone(skb, flow, work);
	colo_unlock(&flow->lock);
	if (flow->more)
		work->plan.drain = 1;

	if (work->plan.event)
		colo_plan_event(work);
	colo_count(COLO_PROG_CMP_SVM, work->plan.verdict, work->plan.reason, skb->len);
	if (work->held_ns)
		colo_late_count(&work->now, work->held_ns);
	if (work->plan.drain && work->now.may_release)
		colo_calls.call(skb, COLO_CALL_DRAIN);
	return work->plan.leaves ? colo_send_last(skb, conf, work->pkt.nic) : TC_ACT_SHOT;
}

/* A carrier comes out of the delay line: are there more frames for it? */
static __always_inline int colo_carry_on(struct __sk_buff *skb, struct colo_work *work)
{
	if (colo_parse(skb, &work->pkt) || !colo_is_tcp(&work->pkt))
		return colo_finish(skb, COLO_PROG_PARK, COLO_V_DROP, COLO_R_MALFORMED);
	work->pkt.nic = skb->mark & (COLO_NICS - 1);
	colo_key_from_vm(&work->pkt, &work->flow);
	/* The frames it has carried before may still be in the tap's backlog. */
	work->drains = COLO_DRAIN_RUNS / 2;
	if (!work->now.may_release)
		return colo_finish(skb, COLO_PROG_PARK, COLO_V_DROP, colo_now_kept(&work->now));
	colo_count(COLO_PROG_PARK, COLO_V_CARRY, COLO_R_CARRIED, skb->len);
	colo_calls.call(skb, COLO_CALL_DRAIN);
	return TC_ACT_SHOT;
}

/* The frame leaves the delay line. */
static __always_inline int colo_park_out(struct __sk_buff *skb, struct colo_config *conf,
					 struct colo_work *work)
{
	colo_pvm_told(skb, work, COLO_PROG_PARK);
	if (work->plan.verdict != COLO_V_PASS)
		return TC_ACT_SHOT;
	if (!work->plan.drain)
		return colo_send_last(skb, conf, work->pkt.nic);
	colo_send(skb, conf, work->pkt.nic);
	colo_calls.call(skb, COLO_CALL_DRAIN);
	return TC_ACT_SHOT;
}

#endif /* COLO_CARRY_H */
