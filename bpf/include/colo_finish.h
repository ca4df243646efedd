/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The one counted exit. Every program leaves through colo_finish(), so that each
 * packet's fate is a row of `bpftool map dump name colo_stats`. What passes goes on to the
 * next filter of the hook: the lasting offsets, then whatever the operator has there.
 */
#ifndef COLO_FINISH_H
#define COLO_FINISH_H

static __always_inline void colo_count(__u32 prog, __u32 verdict, __u32 reason, __u32 bytes)
{
	__u32 ix = (prog * COLO_VERDICTS + verdict) * COLO_REASONS + reason;
	struct colo_count *count = colo_stats.lookup(&ix);

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

#endif /* COLO_FINISH_H */
