/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The counted exits: no program ends before it has counted something, so that each packet's fate is
 * a row of `bpftool map dump name colo_stats`. tests/bpf/test_exits.py follows every way through
 * the compiled programs. What passes goes on to the next program of the hook: the lasting offsets,
 * then whatever the operator has there.
 */
#ifndef COLO_COUNT_H
#define COLO_COUNT_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_maps.h"

static __always_inline void colo_count(__u32 prog, __u32 verdict, __u32 reason, __u32 bytes)
{
	__u32 ix = (prog * COLO_VERDICTS + verdict) * COLO_REASONS + reason;
	struct colo_counter *count = colo_stats.lookup(&ix);

	if (count) {
		count->packets++;
		count->bytes += bytes;
	}
}

static __always_inline int colo_action(__u32 verdict)
{
	return verdict == COLO_V_PASS ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

static __always_inline int colo_finish(struct __sk_buff *skb, __u32 prog, __u32 verdict,
				       __u32 reason)
{
	colo_count(prog, verdict, reason, skb->len);
	return colo_action(verdict);
}

/* A run of the control plane is over: its own frame ends here, and `result` is for who made it. */
static __always_inline int colo_run_over(struct __sk_buff *skb, __u32 prog, __u32 reason,
					 int result)
{
	colo_count(prog, COLO_V_DROP, reason, skb->len);
	return result;
}

#endif /* COLO_COUNT_H */
