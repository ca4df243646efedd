/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs need to know of a frame. Headers are copied out, mostly with
 * bpf_skb_load_bytes(): it works on paged skbs as well, and its bounds are the kernel's own check.
 * Lengths come from the IP header: the frame may carry Ethernet padding.
 *
 * Of two VLAN tags the outer one is in skb->vlan_tci at clsact, the inner one in the bytes.
 */
#ifndef COLO_PACKET_H
#define COLO_PACKET_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "colo_abi.h"

/* Sequence numbers and timestamps wrap: a is after b. */
#define COLO_AFTER(a, b)	((__s32)((a) - (b)) > 0)

#define COLO_TCP_FIN	1
#define COLO_TCP_SYN	2
#define COLO_TCP_RST	4
#define COLO_TCP_PSH	8
#define COLO_TCP_ACK	16
#define COLO_TCP_URG	32
#define COLO_TCP_CWR	128
#define COLO_OPTIONS	20	/* TCP options looked at: as many as fit into 40 bytes, nearly */
#define COLO_IP6_EXTS	6	/* extension headers looked behind */

#define COLO_ETH_LENGTHS	0x0600	/* below: a length, IEEE 802.2 LLC follows */
#define COLO_ETH_RARP		0x8035	/* what QEMU announces a moved VM with */
#define COLO_ETH_LLDP		0x88CC
#define COLO_ND_FIRST		130	/* ICMPv6: MLD and neighbour discovery */
#define COLO_ND_LAST		137
#define COLO_MLD2_REPORT	143

#ifndef IPPROTO_ICMPV6
#define IPPROTO_ICMPV6		58
#endif

struct colo_pkt {
	__u32 l3;		/* offsets from the Ethernet header */
	__u32 l4;
	__u32 payload;
	__u32 len;		/* of the TCP payload */
	__u32 end;		/* of the IP datagram, or of the frame */
	__u32 src[4];		/* network order; IPv4 as ::ffff:a.b.c.d */
	__u32 dst[4];
	__u32 seq;		/* host order */
	__u32 ack;
	__u32 sum;		/* offset of the checksum that covers what is rewritten */
	__u16 sport;		/* network order */
	__u16 dport;
	__u16 ethertype;	/* host order, behind the tags */
	__u16 window;
	__u16 vlan;
	__u16 inner_vlan;
	__u16 nic;
	__u16 fragment;		/* offset and flags; 0: a whole datagram */
	__u16 check;		/* network order: what TCP or UDP says it is */
	__u8 proto;
	__u8 flags;		/* COLO_TCP_* */
	__u8 icmp_type;
	__u8 pad[3];
	__be32 control;		/* of TCP: header length, flags and window, as they stand there */
};

/* What nearly every frame begins with, read at once: a helper call costs more than the copy. */
struct colo_front {
	__u16 mac;		/* the end of an address: so that what follows is aligned */
	__be16 ethertype;
	struct iphdr ip;	/* where there is no tag in the bytes */
	union {			/* and no option in the IPv4 header */
		struct tcphdr tcp;
		struct udphdr udp;
	};
};

static __always_inline int colo_parse_tcp(struct __sk_buff *skb, struct colo_pkt *pkt,
					  struct tcphdr *tcp, int have)
{
	if (!have && bpf_skb_load_bytes(skb, pkt->l4, tcp, sizeof(*tcp)))
		return -1;
	pkt->sport = tcp->source;
	pkt->dport = tcp->dest;
	pkt->seq = bpf_ntohl(tcp->seq);
	pkt->ack = bpf_ntohl(tcp->ack_seq);
	pkt->window = bpf_ntohs(tcp->window);
	pkt->control = tcp_flag_word(tcp);
	pkt->flags = tcp->fin | tcp->syn << 1 | tcp->rst << 2 | tcp->psh << 3 | tcp->ack << 4;
	pkt->payload = pkt->l4 + tcp->doff * 4;
	pkt->sum = pkt->l4 + offsetof(struct tcphdr, check);
	pkt->check = tcp->check;
	if (tcp->doff < 5 || pkt->payload > pkt->end)
		return -1;
	pkt->len = pkt->end - pkt->payload;
	return 0;
}

static __always_inline int colo_parse_udp(struct __sk_buff *skb, struct colo_pkt *pkt,
					  struct udphdr *udp, int have)
{
	if (pkt->l4 + sizeof(*udp) > pkt->end ||
	    (!have && bpf_skb_load_bytes(skb, pkt->l4, udp, sizeof(*udp))))
		return -1;
	if (pkt->l4 + bpf_ntohs(udp->len) > pkt->end && !skb->gso_size)
		return -1;
	pkt->sport = udp->source;
	pkt->dport = udp->dest;
	pkt->check = udp->check;
	return 0;
}

/* `have`: the transport header is in `front`. */
static __always_inline int colo_parse_l4(struct __sk_buff *skb, struct colo_pkt *pkt,
					 struct colo_front *front, int have)
{
	pkt->payload = pkt->l4;
	if (pkt->fragment)
		return 0;
	if (pkt->proto == IPPROTO_TCP)
		return colo_parse_tcp(skb, pkt, &front->tcp, have);
	if (pkt->proto == IPPROTO_UDP)
		return colo_parse_udp(skb, pkt, &front->udp, have);
	if (pkt->proto != IPPROTO_ICMP && pkt->proto != IPPROTO_ICMPV6)
		return 0;
	if (pkt->l4 + 8 > pkt->end)
		return -1;
	pkt->sum = pkt->l4 + 2;
	return bpf_skb_load_bytes(skb, pkt->l4, &pkt->icmp_type, 1);
}

/*
 * Where the datagram ends: its header says that `said` bytes follow from `from` on. A frame too
 * long for that field (BIG TCP) says 0: it ends where its skb ends, and is cut before it leaves the
 * host.
 */
static __always_inline __u32 colo_ip_end(struct __sk_buff *skb, __u32 from, __be16 said)
{
	return !said && skb->gso_size ? skb->len : from + bpf_ntohs(said);
}

static __always_inline int colo_parse_ipv4(struct __sk_buff *skb, struct colo_pkt *pkt,
					   struct colo_front *front, int have)
{
	struct iphdr *ip = &front->ip;

	if (pkt->l3 != ETH_HLEN && bpf_skb_load_bytes(skb, pkt->l3, ip, sizeof(*ip)))
		return -1;
	if (ip->version != 4 || ip->ihl < 5)
		return -1;
	pkt->l4 = pkt->l3 + ip->ihl * 4;
	pkt->end = colo_ip_end(skb, pkt->l3, ip->tot_len);
	if (pkt->end > skb->len || pkt->end < pkt->l4)
		return -1;
	pkt->src[2] = pkt->dst[2] = bpf_htonl(0xffff);
	pkt->src[3] = ip->saddr;
	pkt->dst[3] = ip->daddr;
	pkt->proto = ip->protocol;
	pkt->fragment = bpf_ntohs(ip->frag_off) & 0x3fff;	/* more fragments, or an offset */
	return colo_parse_l4(skb, pkt, front, have && pkt->l4 == ETH_HLEN + sizeof(*ip));
}

/*
 * Behind hop-by-hop and destination options and the fragment header. What stands behind any other
 * (a routing header changes the checksum's address, an AH hides the rest) is not looked at: the
 * datagram is compared from there on as a whole.
 */
static __always_inline int colo_parse_ipv6(struct __sk_buff *skb, struct colo_pkt *pkt,
					   struct colo_front *front)
{
	struct ipv6hdr ip;
	__u8 ext[4];
	int i;

	if (bpf_skb_load_bytes(skb, pkt->l3, &ip, sizeof(ip)))
		return -1;
	if (ip.version != 6)
		return -1;
	pkt->l4 = pkt->l3 + sizeof(ip);
	pkt->end = colo_ip_end(skb, pkt->l4, ip.payload_len);
	if (pkt->end > skb->len)
		return -1;
	__builtin_memcpy(pkt->src, &ip.saddr, 16);
	__builtin_memcpy(pkt->dst, &ip.daddr, 16);
	pkt->proto = ip.nexthdr;
	for (i = 0; i < COLO_IP6_EXTS; i++) {
		if (pkt->proto != IPPROTO_HOPOPTS && pkt->proto != IPPROTO_DSTOPTS &&
		    pkt->proto != IPPROTO_FRAGMENT)
			break;
		if (bpf_skb_load_bytes(skb, pkt->l4, ext, sizeof(ext)))
			return -1;
		if (pkt->proto == IPPROTO_FRAGMENT) {
			pkt->fragment = (ext[2] << 8 | ext[3]) & 0xfff9;
			ext[1] = 0;
		}
		pkt->proto = ext[0];
		pkt->l4 += (ext[1] + 1) * 8;
		if (pkt->l4 > pkt->end)
			return -1;
		if (pkt->fragment)
			break;
	}
	return colo_parse_l4(skb, pkt, front, 0);
}

/* In map memory for the verifier's sake; see colo_scratch.h. */
BPF_PERCPU_ARRAY(colo_fronts, struct colo_front, 1);

/*
 * How the frame begins; *have: up to its transport header. Nearly always all of that lies in the
 * skb's head and is read in place: a helper call would cost more than everything done with it.
 */
static __always_inline struct colo_front *colo_front_get(struct __sk_buff *skb, int *have)
{
	struct colo_front *at = (void *)(long)skb->data + ETH_HLEN - 4, *front;
	__u32 zero = 0;

	front = colo_fronts.lookup(&zero);
	if (!front)
		return 0;
	*have = 1;
	if ((void *)(at + 1) <= (void *)(long)skb->data_end) {
		*front = *at;
		return front;
	}
	if (!bpf_skb_load_bytes(skb, ETH_HLEN - 4, front, sizeof(*front)))
		return front;
	*have = 0;
	__builtin_memset(front, 0, sizeof(*front));
	if (bpf_skb_load_bytes(skb, ETH_HLEN - 4, front, offsetof(struct colo_front, tcp)) &&
	    bpf_skb_load_bytes(skb, ETH_HLEN - 4, front, 4))
		return 0;
	return front;
}

/* 0, or -1 for a frame whose lengths do not fit together. */
static __always_inline int colo_parse(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	struct colo_front *front;
	__u16 tag[2];
	int have = 0;

	__builtin_memset(pkt, 0, sizeof(*pkt));
	front = colo_front_get(skb, &have);
	if (!front)
		return -1;
	tag[1] = front->ethertype;
	pkt->l3 = ETH_HLEN;
	pkt->end = skb->len;
	if (skb->vlan_present)
		pkt->vlan = skb->vlan_tci & 0xfff;
	if (tag[1] == bpf_htons(ETH_P_8021Q) || tag[1] == bpf_htons(ETH_P_8021AD)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, tag, 4))
			return -1;
		pkt->inner_vlan = bpf_ntohs(tag[0]) & 0xfff;
		pkt->l3 = ETH_HLEN + 4;
	}
	pkt->ethertype = bpf_ntohs(tag[1]);
	pkt->l4 = pkt->payload = pkt->l3;
	if (pkt->ethertype == ETH_P_IP)
		return colo_parse_ipv4(skb, pkt, front, have);
	if (pkt->ethertype == ETH_P_IPV6)
		return colo_parse_ipv6(skb, pkt, front);
	return 0;
}

static __always_inline int colo_is_ip(struct colo_pkt *pkt)
{
	return pkt->ethertype == ETH_P_IP || pkt->ethertype == ETH_P_IPV6;
}

static __always_inline int colo_is_tcp(struct colo_pkt *pkt)
{
	return colo_is_ip(pkt) && pkt->proto == IPPROTO_TCP && !pkt->fragment;
}

/* A TCP reset: compared by connection and sequence number, not as a part of the stream. */
static __always_inline int colo_is_reset(struct colo_pkt *pkt)
{
	return colo_is_tcp(pkt) && pkt->flags & COLO_TCP_RST;
}

/* Compared as a stream: TCP, but for resets and fragments. */
static __always_inline int colo_is_stream(struct colo_pkt *pkt)
{
	return colo_is_tcp(pkt) && !(pkt->flags & COLO_TCP_RST);
}

/*
 * The whole list of what is not compared: what a VM says to its neighbours of itself. Each VM
 * does so in its own time; the PVM's passes while the peer is heard, the SVM's is dropped.
 */
static __always_inline int colo_is_neighbour(struct colo_pkt *pkt)
{
	if (pkt->ethertype == ETH_P_IP)
		return pkt->proto == IPPROTO_IGMP;
	if (pkt->ethertype == ETH_P_IPV6)
		return pkt->proto == IPPROTO_ICMPV6 && !pkt->fragment &&
		       ((pkt->icmp_type >= COLO_ND_FIRST && pkt->icmp_type <= COLO_ND_LAST) ||
			pkt->icmp_type == COLO_MLD2_REPORT);
	return pkt->ethertype == ETH_P_ARP || pkt->ethertype == COLO_ETH_RARP ||
	       pkt->ethertype == COLO_ETH_LLDP || pkt->ethertype < COLO_ETH_LENGTHS;
}

/* What a SYN offers for the connection's life. */
struct colo_offer {
	__u32 scale;		/* window shift (RFC 7323); 0 without the option */
	__u32 sum;		/* of all options in any order; of timestamps without values */
};

static __always_inline void colo_tcp_offer(struct __sk_buff *skb, struct colo_pkt *pkt,
					   struct colo_offer *offer)
{
	__u32 off = pkt->l4 + sizeof(struct tcphdr);
	__u8 option[4];
	int i;

	offer->scale = 0;
	offer->sum = 0;
#pragma nounroll
	for (i = 0; i < COLO_OPTIONS; i++) {
		if (off + 2 > pkt->payload || bpf_skb_load_bytes(skb, off, option, 2))
			return;
		if (option[0] == 0)
			return;
		if (option[0] == 1) {
			off++;
			continue;
		}
		if (option[1] < 2 || off + option[1] > pkt->payload)
			return;
		option[2] = option[3] = 0;
		if (option[0] == 3)		/* window scale */
			bpf_skb_load_bytes(skb, off + 2, &option[2], 1);
		if (option[0] == 2)		/* MSS */
			bpf_skb_load_bytes(skb, off + 2, &option[2], 2);
		if (option[0] == 3)
			offer->scale = option[2] > 14 ? 14 : option[2];
		offer->sum += (option[0] << 24 | option[1] << 16 | option[2] << 8 | option[3]) *
			      0x9E3779B1u;
		off += option[1];
	}
}

static __always_inline void colo_key_tags(struct colo_pkt *pkt, struct colo_flow_key *key)
{
	key->vlan = pkt->vlan;
	key->inner_vlan = pkt->inner_vlan;
	key->nic = pkt->nic;
	key->pad = 0;
}

static __always_inline void colo_key_from_vm(struct colo_pkt *pkt, struct colo_flow_key *key)
{
	__builtin_memcpy(key->vm, pkt->src, 16);
	__builtin_memcpy(key->client, pkt->dst, 16);
	key->vm_port = pkt->sport;
	key->client_port = pkt->dport;
	colo_key_tags(pkt, key);
}

static __always_inline void colo_key_from_client(struct colo_pkt *pkt, struct colo_flow_key *key)
{
	__builtin_memcpy(key->vm, pkt->dst, 16);
	__builtin_memcpy(key->client, pkt->src, 16);
	key->vm_port = pkt->dport;
	key->client_port = pkt->sport;
	colo_key_tags(pkt, key);
}

#endif /* COLO_PACKET_H */
