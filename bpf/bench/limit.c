// SPDX-License-Identifier: GPL-2.0-only
/*
 * For the benchmarks, never part of a data plane: the same way for every frame as behind the
 * shipped programs, with nothing compared and nothing held. What is left is what nobody can do
 * without: the input goes to both VMs, the SVM's output crosses the link, what both say is hashed,
 * and one of two answers leaves when both could be there. How fast that goes on a machine is the
 * limit for any comparer on it.
 *
 * Of small frames and of datagrams the second leaves, whosever it is, so that a client is never
 * told what one VM has still to say. On a connection with long ones, which the VMs cut differently,
 * the SVM's leave, for the PVM's come first nearly always. IPv4 without options, TCP with
 * timestamps, and a port of the client is a connection: that is all the lanes send.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_hash.h"
#include "colo_link.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_verifier.h"

#define LIMIT_L4	(ETH_HLEN + 20)
#define LIMIT_PVM	1
#define LIMIT_SVM	2
#define LIMIT_EPOCH	1	/* the only one of the lanes */

#define LIMIT_PARTS	5	/* of COLO_PLAIN_MAX bytes: 64 KB */
#define LIMIT_SMALL	1448	/* bytes of payload */
#define LIMIT_SYN_TS	28	/* TSval in a SYN-ACK of Linux: behind MSS and SACK-permitted */
#define LIMIT_TS	24	/* and in all that follows: behind two NOPs */

struct limit_flow {
	__u32 isn;	/* the PVM's */
	__be32 tsval;	/* its last: what leaves tells no other clock */
	__u32 next;	/* behind what it has sent */
	__u32 svm;	/* behind what the SVM has sent */
	__u64 order;	/* nothing: what is written before it is seen by who is behind it */
	__u64 came;	/* the first SYN-ACK: what it acknowledges, and whose it is (LIMIT_...) */
	__s64 lead;	/* so many datagrams more of the PVM than of the SVM */
	__u32 bulk;	/* 1: there are long frames */
	__u32 owed;	/* end of the SVM's last frame dropped as the first of two; 0: none */
};

struct limit_head {
	__be16 from;
	__be16 to;
	__be32 seq;
	__be32 ack;
	__u8 words;
	__u8 flags;
	__be16 window;
};

BPF_ARRAY(limit_flows, struct limit_flow, 65536);

static __always_inline struct colo_config *limit_conf(void)
{
	__u32 zero = 0;

	return colo_conf.lookup(&zero);
}

/* Every byte is read once, as the shipped programs read it, and nothing done with the digest. */
static __always_inline void limit_hash(struct __sk_buff *skb)
{
	__u64 from = LIMIT_L4 + 8, len = skb->len, part;
	struct colo_buf *buf = colo_buf_get();
	struct colo_work *work = colo_work_again();
	int i;

	if (!work || !buf)
		return;
	colo_lanes_begin(work->walk.lane, 1);
#pragma nounroll
	for (i = 0; i < LIMIT_PARTS && from < len; i++) {
		part = colo_min(len - from, COLO_PLAIN_MAX);
		if (colo_outside(part, 1, COLO_PLAIN_MAX))
			return;
		if (bpf_skb_load_bytes(skb, from, &buf->word[COLO_START / 8], part))
			return;
		work->walk.pos = COLO_START;
		work->walk.limit = COLO_START + part;
		work->digest = colo_walk_plain(&work->walk, buf);
		from += part;
	}
}

/* Is this datagram the second of two? There are as many of one VM as of the other. */
static __always_inline int limit_dgram(struct __sk_buff *skb, __u32 whose)
{
	struct limit_flow *flow;
	__be16 to = 0;
	__u32 port;
	__s64 was;

	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, LIMIT_L4 + 2, &to, 2))
		return 0;
	port = bpf_ntohs(to);
	flow = limit_flows.lookup(&port);
	if (!flow)
		return 0;
	was = __sync_fetch_and_add(&flow->lead, whose == LIMIT_PVM ? 1 : -1);
	return whose == LIMIT_PVM ? was < 0 : was > 0;
}

/* TCP's header, and its flow by the client's port; 0: not TCP. */
static __always_inline struct limit_flow *limit_tcp(struct __sk_buff *skb, struct limit_head *tcp,
						    int from_client)
{
	__u8 proto = 0;
	__u32 port;

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 9, &proto, 1) || proto != IPPROTO_TCP ||
	    bpf_skb_load_bytes(skb, LIMIT_L4, tcp, sizeof(*tcp)))
		return 0;
	port = bpf_ntohs(from_client ? tcp->from : tcp->to);
	return limit_flows.lookup(&port);
}

static __always_inline int limit_put(struct __sk_buff *skb, __u32 off, __be32 was, __be32 now)
{
	bpf_l4_csum_replace(skb, LIMIT_L4 + 16, was, now, 4);
	return bpf_skb_store_bytes(skb, LIMIT_L4 + off, &now, 4, 0);
}

/* The SVM's frame tells the PVM's time, or the client would drop what the PVM sends next (PAWS). */
static __always_inline void limit_clock(struct __sk_buff *skb, struct limit_flow *flow, __u32 off)
{
	__be32 tsval;

	if (!bpf_skb_load_bytes(skb, LIMIT_L4 + off, &tsval, sizeof(tsval)))
		limit_put(skb, off, tsval, flow->tsval);
}

/* Is this SYN-ACK the second of two that answer the same SYN? */
static __always_inline int limit_second(struct limit_flow *flow, struct limit_head *tcp,
					__u32 whose)
{
	__u64 mine = (__u64)tcp->ack << 8 | whose, other = mine ^ LIMIT_PVM ^ LIMIT_SVM, was;
	int i;

	for (i = 0; i < 3; i++) {	/* once more if the other came in between */
		was = *(volatile __u64 *)&flow->came;
		if (__sync_val_compare_and_swap(&flow->came, was, was == other ? 0 : mine) == was)
			return was == other;
	}
	return 0;
}

/* Bytes of payload, and one for FIN; 0: a pure ACK. */
static __always_inline __u32 limit_len(struct __sk_buff *skb, struct limit_head *tcp)
{
	return skb->len - LIMIT_L4 - (tcp->words >> 4) * 4 + (tcp->flags & COLO_TCP_FIN);
}

/* Note that one VM has sent so much. The swap keeps two CPUs from both seeing the old state. */
static __always_inline int limit_reached(struct limit_flow *flow, __u32 *mine, __u32 *other,
					 __u32 end)
{
	if (COLO_AFTER(end, *mine))
		*mine = end;
	__sync_val_compare_and_swap(&flow->order, 0, 0);
	return !COLO_AFTER(end, *(volatile __u32 *)other);
}

/* From its first long frame on. */
static __always_inline int limit_bulk(struct limit_flow *flow, __u32 len)
{
	if (len > LIMIT_SMALL)
		flow->bulk = 1;
	return flow->bulk;
}

/*
 * Tap egress: the client's frame goes to both. The PVM is not shown an ACK of what only the SVM
 * sent.
 */
int limit_cli(struct __sk_buff *skb)
{
	struct colo_config *conf = limit_conf();
	struct limit_flow *flow;
	struct limit_head tcp;

	if (!conf || colo_link_tag(skb, conf, LIMIT_EPOCH, 0) ||
	    bpf_clone_redirect(skb, conf->link_ifindex, 0))
		return TC_ACT_SHOT;
	flow = limit_tcp(skb, &tcp, 1);
	if (flow && tcp.flags & COLO_TCP_ACK && COLO_AFTER(bpf_ntohl(tcp.ack), flow->next))
		limit_put(skb, 8, tcp.ack, bpf_htonl(flow->next));
	return TC_ACT_OK;
}

/* Tap ingress: what was sent before goes on; the PVM's own frame ends here. */
int limit_pvm(struct __sk_buff *skb)
{
	struct limit_flow *flow;
	struct limit_head tcp;
	__u32 len, seq;
	int second;

	if (skb->mark == COLO_MARK_RELEASED) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	limit_hash(skb);
	flow = limit_tcp(skb, &tcp, 0);
	if (!flow)
		return skb->protocol == bpf_htons(ETH_P_ARP) || limit_dgram(skb, LIMIT_PVM) ?
			TC_ACT_UNSPEC : TC_ACT_SHOT;
	if (tcp.flags & COLO_TCP_SYN) {
		flow->isn = bpf_ntohl(tcp.seq);
		flow->next = flow->svm = flow->isn + 1;
		flow->bulk = flow->owed = 0;
		bpf_skb_load_bytes(skb, LIMIT_L4 + LIMIT_SYN_TS, &flow->tsval, 4);
		return limit_second(flow, &tcp, LIMIT_PVM) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
	}
	bpf_skb_load_bytes(skb, LIMIT_L4 + LIMIT_TS, &flow->tsval, 4);
	len = limit_len(skb, &tcp);
	seq = bpf_ntohl(tcp.seq);
	second = limit_reached(flow, &flow->next, &flow->svm, seq + len);
	if (flow->owed && COLO_AFTER(flow->owed, seq) && !COLO_AFTER(flow->owed, seq + len)) {
		flow->owed = 0;
		return TC_ACT_UNSPEC;
	}
	return second && len && !limit_bulk(flow, len) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

/* Link ingress: the SVM's frame leaves, in the PVM's numbers. */
int limit_svm(struct __sk_buff *skb)
{
	struct colo_config *conf = limit_conf();
	struct limit_flow *flow;
	struct limit_head tcp;
	__u32 len, end;

	if (!conf || skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_SHOT;
	limit_hash(skb);
	flow = limit_tcp(skb, &tcp, 0);
	if (flow && tcp.flags & COLO_TCP_SYN) {
		if (!limit_second(flow, &tcp, LIMIT_SVM))
			return TC_ACT_SHOT;
		limit_put(skb, 4, tcp.seq, bpf_htonl(flow->isn));
		limit_clock(skb, flow, LIMIT_SYN_TS);
	} else if (flow) {
		len = limit_len(skb, &tcp);
		end = bpf_ntohl(tcp.seq) + len;
		if (!limit_reached(flow, &flow->svm, &flow->next, end) && len &&
		    !limit_bulk(flow, len)) {
			flow->owed = end;
			return TC_ACT_SHOT;
		}
		limit_clock(skb, flow, LIMIT_TS);
	} else if (!limit_dgram(skb, LIMIT_SVM)) {
		return TC_ACT_SHOT;
	}
	skb->mark = COLO_MARK_RELEASED;
	return bpf_redirect(conf->tap_ifindex[0], BPF_F_INGRESS);
}
