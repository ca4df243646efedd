// SPDX-License-Identifier: GPL-2.0-only
/*
 * A bad wire: loses, doubles and delays frames at random. A delayed frame takes some turns on a
 * loop of two devices, through the CPU's backlog each time, and so comes behind later ones.
 * Chances are in 65536ths; LOOP is the loop's near end, FLAGS is BPF_F_INGRESS on an ingress hook.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#define DONE	0xC0110000u	/* has been delayed or is a double: let it through */
#define TURNS	0xff

struct wire {
	__u32 lose;
	__u32 twice;
	__u32 late;
	__u32 home;		/* the noisy device */
};

BPF_ARRAY(wire, struct wire, 1);
BPF_ARRAY(count, __u64, 4);	/* passed, lost, doubled, delayed */

static __always_inline void seen(__u32 what)
{
	__u64 *n = count.lookup(&what);

	if (n)
		__sync_fetch_and_add(n, 1);
}

int noise(struct __sk_buff *skb)
{
	__u32 zero = 0, dice = bpf_get_prandom_u32() & 0xffff;
	struct wire *w = wire.lookup(&zero);

	if (!w)
		return TC_ACT_UNSPEC;
	if ((skb->mark & 0xffff0000) == DONE) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	if (dice < w->lose) {
		seen(1);
		return TC_ACT_SHOT;
	}
	dice -= w->lose;
	if (dice < w->twice) {
		seen(2);
		skb->mark = DONE;
		bpf_clone_redirect(skb, skb->ifindex, FLAGS);
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	dice -= w->twice;
	if (dice < w->late) {
		seen(3);
		skb->mark = DONE | (bpf_get_prandom_u32() & TURNS);
		return bpf_redirect(LOOP, 0);
	}
	seen(0);
	return TC_ACT_UNSPEC;
}

/* At the loop's far end. */
int turn(struct __sk_buff *skb)
{
	__u32 zero = 0, turns = skb->mark & TURNS;
	struct wire *w = wire.lookup(&zero);

	if (!w || (skb->mark & 0xffff0000) != DONE)
		return TC_ACT_SHOT;
	if (!turns)
		return bpf_redirect(w->home, FLAGS);
	skb->mark = DONE | (turns - 1);
	return bpf_redirect(LOOP, 0);
}
