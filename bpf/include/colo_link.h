/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The link: VXLAN in external mode. VNI = pairing + number of the NIC, GBP group = low 16 bits
 * of the epoch the inner frame was produced in.
 */
#ifndef COLO_LINK_H
#define COLO_LINK_H

struct colo_gbp {		/* struct vxlan_metadata of the kernel */
	__u32 gbp;
};

/* 0, the tag and the NIC if the frame belongs to our pairing, -1 otherwise. */
static __always_inline int colo_link_in(struct __sk_buff *skb, struct colo_conf *conf, __u16 *tag,
					__u32 *nic)
{
	struct bpf_tunnel_key key = {};
	struct colo_gbp md = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return -1;
	*nic = key.tunnel_id & (COLO_NICS - 1);
	if ((key.tunnel_id & ~(COLO_NICS - 1)) != conf->vni || key.remote_ipv4 != bpf_ntohl(conf->peer_ip))
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
 * The peer is heard: write down when, and return it. Once a tick of the kernel will do, for reading the
 * clock costs as much as a look-up, and the word would go from cache to cache. What stands there is too
 * old by a tick at most; after the host was suspended, when ticks stood still and the clock did not, it
 * is what it was before. Who looks (the word is 0 behind a farewell) never finds the peer heard later
 * than it was.
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
static __always_inline __u32 colo_nic_of(struct __sk_buff *skb, struct colo_conf *conf)
{
	__u32 nic;

#pragma unroll
	for (nic = 0; nic < COLO_NICS; nic++)
		if (skb->ifindex == conf->tap_ifindex[nic])
			return nic;
	return COLO_NICS;
}

static __always_inline int colo_link_to(struct __sk_buff *skb, __u32 vni, __u32 peer_ip, __u16 tag)
{
	struct bpf_tunnel_key key = {};
	struct colo_gbp md = {};

	key.tunnel_id = vni;
	key.remote_ipv4 = bpf_ntohl(peer_ip);
	key.tunnel_ttl = 64;
	md.gbp = tag;
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return -1;
	return bpf_skb_set_tunnel_opt(skb, &md, sizeof(md));
}

/* Address the frame to the peer's plane, tagged with its epoch. */
static __always_inline int colo_link_tag(struct __sk_buff *skb, struct colo_conf *conf, __u16 tag,
					 __u32 nic)
{
	return colo_link_to(skb, conf->vni + nic, conf->peer_ip, tag);
}

/*
 * A frame that is a plane's own, not a VM's: the reason to count it under, or NONE. One that leaves
 * is not heard any more from here on, without waiting for the link's timeout.
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

#endif /* COLO_LINK_H */
