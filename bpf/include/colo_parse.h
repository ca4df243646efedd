/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs need to know of a frame. Headers are copied out with bpf_skb_load_bytes():
 * it works on paged skbs as well, and its bounds are the kernel's own check.
 * Lengths come from the IP header: the frame may carry Ethernet padding.
 */
#ifndef COLO_PARSE_H
#define COLO_PARSE_H

/* Sequence numbers and timestamps wrap: a is after b. */
#define COLO_AFTER(a, b)	((__s32)((a) - (b)) > 0)

#define COLO_TCP_FIN	1
#define COLO_TCP_SYN	2
#define COLO_TCP_RST	4
#define COLO_TCP_ACK	16
#define COLO_OPTIONS	20	/* TCP options looked at: as many as fit into 40 bytes, nearly */

struct colo_pkt {
	__u32 l3;		/* offsets from the Ethernet header */
	__u32 l4;
	__u32 payload;
	__u32 len;		/* of the TCP payload */
	__u32 end;		/* of the IP datagram, or of the frame */
	__u32 src;		/* network order */
	__u32 dst;
	__u32 seq;		/* host order */
	__u32 ack;
	__u16 sport;		/* network order */
	__u16 dport;
	__u16 ethertype;	/* host order */
	__u16 window;
	__u16 vlan;
	__u8 proto;
	__u8 flags;		/* COLO_TCP_* */
	__u8 fragment;
	__u8 pad[3];
};

static __always_inline int colo_parse_tcp(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, pkt->l4, &tcp, sizeof(tcp)))
		return -1;
	pkt->sport = tcp.source;
	pkt->dport = tcp.dest;
	pkt->seq = bpf_ntohl(tcp.seq);
	pkt->ack = bpf_ntohl(tcp.ack_seq);
	pkt->window = bpf_ntohs(tcp.window);
	pkt->flags = tcp.fin | tcp.syn << 1 | tcp.rst << 2 | tcp.ack << 4;
	pkt->payload = pkt->l4 + tcp.doff * 4;
	if (tcp.doff < 5 || pkt->payload > pkt->end)
		return -1;
	pkt->len = pkt->end - pkt->payload;
	return 0;
}

static __always_inline int colo_parse_ipv4(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	struct iphdr ip;
	__u16 ports[2];

	if (bpf_skb_load_bytes(skb, pkt->l3, &ip, sizeof(ip)))
		return -1;
	if (ip.version != 4 || ip.ihl < 5)
		return -1;
	pkt->l4 = pkt->l3 + ip.ihl * 4;
	pkt->end = pkt->l3 + bpf_ntohs(ip.tot_len);
	if (pkt->end > skb->len || pkt->end < pkt->l4)
		return -1;
	pkt->src = ip.saddr;
	pkt->dst = ip.daddr;
	pkt->proto = ip.protocol;
	if (bpf_ntohs(ip.frag_off) & 0x3fff) {	/* more fragments, or an offset */
		pkt->fragment = 1;
		return 0;
	}
	if (pkt->proto == IPPROTO_TCP)
		return colo_parse_tcp(skb, pkt);
	if (pkt->proto == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, pkt->l4, ports, sizeof(ports)))
			return -1;
		pkt->sport = ports[0];
		pkt->dport = ports[1];
	}
	return 0;
}

/* 0, or -1 for a frame whose lengths do not fit together. */
static __always_inline int colo_parse(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	__u16 ethertype;

	__builtin_memset(pkt, 0, sizeof(*pkt));
	if (bpf_skb_load_bytes(skb, 12, &ethertype, sizeof(ethertype)))
		return -1;
	pkt->ethertype = bpf_ntohs(ethertype);
	pkt->l3 = ETH_HLEN;
	pkt->end = skb->len;
	if (skb->vlan_present)
		pkt->vlan = skb->vlan_tci & 0xfff;
	return pkt->ethertype == ETH_P_IP ? colo_parse_ipv4(skb, pkt) : 0;
}

/* Window shift a SYN offers (RFC 7323); 0 without the option. */
static __always_inline __u32 colo_tcp_wscale(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	__u32 off = pkt->l4 + sizeof(struct tcphdr);
	__u8 option[3];
	int i;

#pragma nounroll
	for (i = 0; i < COLO_OPTIONS; i++) {
		if (off + 3 > pkt->payload || bpf_skb_load_bytes(skb, off, option, 3))
			return 0;
		if (option[0] == 3)
			return option[2] > 14 ? 14 : option[2];
		if (option[0] == 0)
			return 0;
		if (option[0] == 1)
			off++;
		else if (option[1] < 2)
			return 0;
		else
			off += option[1];
	}
	return 0;
}

static __always_inline void colo_key_from_vm(struct colo_pkt *pkt, struct colo_flow_key *key)
{
	key->vm = pkt->src;
	key->client = pkt->dst;
	key->vm_port = pkt->sport;
	key->client_port = pkt->dport;
	key->vlan = pkt->vlan;
	key->nic = 0;
}

static __always_inline void colo_key_from_client(struct colo_pkt *pkt, struct colo_flow_key *key)
{
	key->vm = pkt->dst;
	key->client = pkt->src;
	key->vm_port = pkt->dport;
	key->client_port = pkt->sport;
	key->vlan = pkt->vlan;
	key->nic = 0;
}

#endif /* COLO_PARSE_H */
