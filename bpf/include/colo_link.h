/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The link: VXLAN in external mode. VNI = pairing + number of the NIC, GBP group = low 16 bits
 * of the epoch the inner frame was produced in.
 */
#ifndef COLO_LINK_H
#define COLO_LINK_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_maps.h"

struct colo_gbp {		/* struct vxlan_metadata of the kernel */
	__u32 gbp;
};

/* Are the two addresses the same? Without a branch: see docs/understand/data-plane.md, One walk. */
static __always_inline int colo_ip_equal(const __u32 *one, const __u32 *other)
{
	return !((one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) |
		 (one[3] ^ other[3]));
}

/* 0, the tag and the NIC if the frame belongs to our pairing, -1 otherwise. */
static __always_inline int colo_link_in(struct __sk_buff *skb, struct colo_config *conf, __u16 *tag,
					__u32 *nic)
{
	struct bpf_tunnel_key key = {};
	struct colo_gbp md = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), conf->tunnel_flags))
		return -1;
	*nic = key.tunnel_id & (COLO_NICS - 1);
	if ((key.tunnel_id & ~(COLO_NICS - 1)) != conf->vni ||
	    !colo_ip_equal(key.remote_ipv6, conf->peer_ip))
		return -1;
	/* A group of 0 is not put on the wire: without the option the tag is 0. */
	if (bpf_skb_get_tunnel_opt(skb, &md, sizeof(md)) < 0)
		md.gbp = 0;
	*tag = md.gbp & 0xffff;
	return 0;
}

/* When this CPU has last written down that the peer is heard. */
struct colo_ear {
	__u64 tick;
	__u64 at_ns;
};

BPF_PERCPU_ARRAY(colo_ears, struct colo_ear, 1);

/*
 * The peer is heard: store the time, and return it. Once in a tick of the kernel is enough: reading
 * the clock costs as much as a look-up, and storing moves the word from cache to cache. So the
 * stored time is too old by a tick at most. After a suspend (the clock went on, the ticks did not)
 * it is as old as the suspend is long, until the next tick. It is never too new. A farewell sets it
 * to 0.
 */
static __always_inline __u64 colo_link_hear(__u64 *heard)
{
	__u64 tick = bpf_jiffies64();
	struct colo_ear *ear;
	__u32 zero = 0;

	ear = colo_ears.lookup(&zero);
	if (!ear)
		return 0;
	if (ear->tick != tick || *(volatile __u64 *)heard < ear->at_ns) {
		ear->tick = tick;
		ear->at_ns = bpf_ktime_get_boot_ns();
		*heard = ear->at_ns;
	}
	return ear->at_ns;
}

/* Which NIC of the VM the hook is on; COLO_NICS: none of ours. */
static __always_inline __u32 colo_nic_of(struct __sk_buff *skb, struct colo_config *conf)
{
	__u32 nic;

#pragma unroll
	for (nic = 0; nic < COLO_NICS; nic++)
		if (skb->ifindex == conf->tap_ifindex[nic])
			return nic;
	return COLO_NICS;
}

/*
 * The source is the address that the peer knows, not any other of this host. The outer UDP header
 * has no checksum, over IPv6 neither (RFC 6935): the inner frame has one, and the peer's device
 * takes it.
 */
static __always_inline int colo_link_to(struct __sk_buff *skb, struct colo_config *conf, __u32 vni,
					const __u32 *peer_ip, __u16 tag)
{
	struct bpf_tunnel_key key = {};
	struct colo_gbp md = {};

	key.tunnel_id = vni;
	__builtin_memcpy(key.remote_ipv6, peer_ip, sizeof(key.remote_ipv6));
	__builtin_memcpy(key.local_ipv6, conf->local_ip, sizeof(key.local_ipv6));
	key.tunnel_ttl = 64;
	md.gbp = tag;
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX | conf->tunnel_flags))
		return -1;
	return bpf_skb_set_tunnel_opt(skb, &md, sizeof(md));
}

/* Address the frame to the peer's plane, tagged with its epoch. */
static __always_inline int colo_link_tag(struct __sk_buff *skb, struct colo_config *conf, __u16 tag,
					 __u32 nic)
{
	return colo_link_to(skb, conf, conf->vni + nic, conf->peer_ip, tag);
}

/*
 * The reason to count a plane's own frame under; NONE: the frame is a VM's. After a farewell the
 * peer counts as silent at once, not only after the link's timeout.
 */
static __always_inline __u32 colo_link_word(__u16 ethertype, __u64 *heard)
{
	if (ethertype == COLO_BEACON_ETHERTYPE)
		return COLO_R_BEACON;
	if (ethertype != COLO_LEAVE_ETHERTYPE)
		return COLO_R_NONE;
	*heard = 0;
	return COLO_R_FAREWELL;
}

/*
 * The plane's beat. A beacon tells the peer's plane that this plane is there; it is as large as the
 * link has to carry. The daemon sends the first beacon. A copy goes into a class of the delay line
 * that lets one frame out per heartbeat. What comes out is sent as a beacon, and a copy goes in
 * again, until a time that the daemon sets. So the plane beats evenly while the daemon waits for a
 * processor, and falls silent soon after a daemon that is gone.
 */

#define COLO_BEAT_COPIES	2	/* the link may lose one */

/* Into the line again? The class takes one frame: if one waits there, this copy is refused. */
static __always_inline void colo_beat_again(struct __sk_buff *skb, struct colo_config *conf)
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

/* Send a beacon, tagged with the present epoch: the peer hears which one that is. */
static __always_inline int colo_beat(struct __sk_buff *skb, struct colo_config *conf, __u64 epoch)
{
	int i;

	if (!conf || !conf->vni)
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

#endif /* COLO_LINK_H */
