/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The plane's beat. A beacon, as large as the link has to carry, tells the peer's plane that this one is
 * there. The daemon sends the first; a copy of it goes into a class of the delay line that lets one out
 * in a heartbeat. That one is a beacon again, and goes in again, until the time the daemon has set. So
 * the plane beats evenly while the daemon sleeps or waits for a processor, and falls silent a little
 * after a daemon that is gone.
 */
#ifndef COLO_BEAT_H
#define COLO_BEAT_H

#define COLO_BEAT_COPIES	2	/* the link may lose one, and the second costs next to nothing */

/* Into the line again? If one waits there already this one is too many, and its queue refuses it. */
static __always_inline void colo_beat_again(struct __sk_buff *skb, struct colo_conf *conf)
{
	__u64 *until = colo_live_word(COLO_LIVE_BEAT_UNTIL_NS);
	__u64 *last = colo_live_word(COLO_LIVE_BEAT_NS);
	__u64 now = bpf_ktime_get_boot_ns();

	if (!until || !last)
		return;
	*last = now;
	if (!conf->park_ifindex || now >= *(volatile __u64 *)until)
		return;
	skb->priority = COLO_LINE_BEAT;
	bpf_clone_redirect(skb, conf->park_ifindex, 0);
	skb->priority = 0;
}

/* Send a beacon with the epoch of this moment: nothing is let out by it, but who hears it is told. */
static __always_inline int colo_beat(struct __sk_buff *skb, struct colo_conf *conf, __u64 epoch)
{
	int i;

	if (!conf || !conf->vni || conf->mode == COLO_SOLO)
		return colo_finish(skb, COLO_PROG_BEACON, COLO_V_DROP, COLO_R_NO_PAIR);
	colo_beat_again(skb, conf);
	if (colo_link_tag(skb, conf, epoch, 0))
		return colo_finish(skb, COLO_PROG_BEACON, COLO_V_DROP, COLO_R_CLONE_FAILED);
#pragma unroll
	for (i = 0; i < COLO_BEAT_COPIES; i++) {
		if (bpf_clone_redirect(skb, conf->link_ifindex, 0))
			return colo_finish(skb, COLO_PROG_BEACON, COLO_V_DROP, COLO_R_CLONE_FAILED);
		colo_count(COLO_PROG_BEACON, COLO_V_LINK, COLO_R_BEACON, skb->len);
	}
	return TC_ACT_SHOT;
}

#endif /* COLO_BEAT_H */
