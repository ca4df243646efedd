/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sequence numbers and timestamps. The link speaks PVM numbers; the SVM picks its own for a
 * connection opened after the last checkpoint. delta = SVM number - PVM number, learnt from the
 * SVM's SYN and the first ACK of the client (passive open) or the SYN-ACK of the server (active
 * open), which acknowledges the PVM's SYN. In the same way ts_delta from the TSval of the SVM's
 * SYN and the TSecr that answers the PVM's.
 *
 * The two clocks drift apart by the time the VMs stand at checkpoints. So the SVM is never
 * shown a TSecr beyond what it has sent; and after a takeover no TSval falls behind what
 * the client has echoed already, or it would drop the segment (PAWS).
 *
 * Two layers. The epoch offset (SVM against PVM, secondary only) ends with its epoch: the next
 * checkpoint gives the SVM the PVM's numbers. Two slots by epoch parity, so that a turn that
 * is undone finds the old one intact. After a takeover what the last epoch taught stays in force
 * (conf->lasting_epoch) until the control plane adds it to the lasting offsets.
 *
 * The lasting offset (VM against client, colo_last) lives as long as the connection, on whichever
 * host serves, between client side and everything else: it is taken off before the frame is
 * cloned to the link and put on after the frame was compared, so that the link speaks VM numbers.
 */
#ifndef COLO_SEQADJ_H
#define COLO_SEQADJ_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>

#include "colo_abi.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_verifier.h"

/*
 * The TCP options whose numbers are translated: timestamps (RFC 7323) and SACK (RFC 2018).
 *
 * What a loop carries from turn to turn is kept in map memory: the verifier then knows nothing
 * of it, and one turn looks to it like the next.
 */

#define COLO_OPT_END		0
#define COLO_OPT_NOP		1
#define COLO_OPT_SACK		5
#define COLO_OPT_TS		8
#define COLO_OPT_MPTCP		30
#define COLO_OPT_IGNORED	253	/* for experiments (RFC 4727): known to no VM */
#define COLO_SACK_BLOCKS	4	/* as many as fit into 40 bytes */

struct colo_opts {		/* offsets from the Ethernet header; 0: not there */
	__u32 ts;		/* of TSval */
	__u32 sack;		/* of the first block */
	__u32 sack_end;
	__u32 tsval;		/* host order */
	__u32 tsecr;
	__u32 at;		/* where a loop stands */
	__u32 pad;
};

BPF_PERCPU_ARRAY(colo_optw, struct colo_opts, 1);

static __always_inline void colo_opts_walk(struct __sk_buff *skb, struct colo_pkt *pkt,
					   struct colo_opts *opts)
{
	__u8 head[2];
	__u32 off;
	int i;

	opts->at = pkt->l4 + sizeof(struct tcphdr);
#pragma nounroll
	for (i = 0; i < COLO_OPTIONS; i++) {
		COLO_FORGET();
		off = opts->at;
		if (off + 2 > pkt->payload || bpf_skb_load_bytes(skb, off, head, 2))
			break;
		if (head[0] == COLO_OPT_NOP) {
			opts->at = off + 1;
			continue;
		}
		if (head[0] == COLO_OPT_END || head[1] < 2 || off + head[1] > pkt->payload)
			break;
		if (head[0] == COLO_OPT_TS && head[1] == 10)
			opts->ts = off + 2;
		if (head[0] == COLO_OPT_SACK) {
			opts->sack = off + 2;
			opts->sack_end = off + head[1];
		}
		opts->at = off + head[1];
	}
}

/* The options of the segment, in memory of this CPU: good until the program ends. */
static __always_inline struct colo_opts *colo_opts_find(struct __sk_buff *skb,
							struct colo_pkt *pkt)
{
	__u32 zero = 0, ts[2];
	struct colo_opts *opts = colo_optw.lookup(&zero);

	if (!opts)
		return 0;
	__builtin_memset(opts, 0, sizeof(*opts));
	colo_opts_walk(skb, pkt, opts);
	if (!opts->ts || bpf_skb_load_bytes(skb, opts->ts, ts, 8)) {
		opts->ts = 0;
		return opts;
	}
	opts->tsval = bpf_ntohl(ts[0]);
	opts->tsecr = bpf_ntohl(ts[1]);
	return opts;
}

/*
 * Adjust the checksum for four changed bytes of the TCP header. Options need not be aligned: at an
 * odd place the bytes of the difference are swapped.
 */
static __always_inline int colo_put_sum(struct __sk_buff *skb, struct colo_pkt *pkt, __u32 at,
					__be32 from, __be32 to)
{
	__u32 diff = bpf_csum_diff(&from, 4, &to, 4, 0);

	if ((at - pkt->l4) & 1)
		diff = diff >> 8 | diff << 24;
	return bpf_l4_csum_replace(skb, pkt->sum, 0, diff, 0);
}

/* Write a 32-bit number of the TCP header. */
static __always_inline int colo_put(struct __sk_buff *skb, struct colo_pkt *pkt, __u32 at,
				    __u32 value, __u32 now)
{
	__u32 from = bpf_htonl(value), to = bpf_htonl(now);

	if (from == to)
		return 0;
	if (colo_put_sum(skb, pkt, at, from, to))
		return -1;
	return bpf_skb_store_bytes(skb, at, &to, 4, 0);
}

/* The same of an option's kind, the one byte at `at`. */
static __always_inline int colo_put_kind(struct __sk_buff *skb, struct colo_pkt *pkt, __u32 at,
					 __u8 kind, __u8 now)
{
	if (colo_put_sum(skb, pkt, at, bpf_htonl((__u32)kind << 24), bpf_htonl((__u32)now << 24)))
		return -1;
	return bpf_skb_store_bytes(skb, at, &now, 1, 0);
}

/*
 * Hide multipath TCP (RFC 8684) from the VM, in a segment that opens a connection. Each VM would
 * draw a key of its own, from which data sequence numbers follow, and a nonce for each subflow.
 * After a takeover the client would get numbers that it has never seen. Without the option both
 * ends speak plain TCP. Its kind becomes one that every host ignores (RFC 9293, 3.1): so nothing
 * moves.
 */
static __always_inline int colo_opts_no_mptcp(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	struct colo_opts *opts;
	__u32 zero = 0, off;
	__u8 head[2];
	int i;

	opts = colo_optw.lookup(&zero);
	if (!opts)
		return -1;
	opts->at = pkt->l4 + sizeof(struct tcphdr);
#pragma nounroll
	for (i = 0; i < COLO_OPTIONS; i++) {
		COLO_FORGET();
		off = opts->at;
		if (off + 2 > pkt->payload || bpf_skb_load_bytes(skb, off, head, 2) ||
		    head[0] == COLO_OPT_END)
			break;
		if (head[0] == COLO_OPT_NOP) {
			opts->at = off + 1;
			continue;
		}
		if (head[1] < 2)
			break;
		if (head[0] == COLO_OPT_MPTCP &&
		    colo_put_kind(skb, pkt, off, COLO_OPT_MPTCP, COLO_OPT_IGNORED))
			return -1;
		opts->at = off + head[1];
	}
	return 0;
}

/* Add `delta` to the ACK number and to the edges of the SACK blocks. */
static __always_inline int colo_put_ack(struct __sk_buff *skb, struct colo_pkt *pkt,
					struct colo_opts *opts, __u32 delta)
{
	__u32 edge, off;
	int i;

	if (!delta)
		return 0;
	if (colo_put(skb, pkt, pkt->l4 + 8, pkt->ack, pkt->ack + delta))
		return -1;
	opts->at = opts->sack;
	if (!opts->at)
		return 0;
#pragma nounroll
	for (i = 0; i < 2 * COLO_SACK_BLOCKS; i++) {
		COLO_FORGET();
		off = opts->at;
		if (off + 4 > opts->sack_end)
			break;
		if (bpf_skb_load_bytes(skb, off, &edge, 4) ||
		    colo_put(skb, pkt, off, bpf_ntohl(edge), bpf_ntohl(edge) + delta))
			return -1;
		opts->at = off + 4;
	}
	return 0;
}

/* LRU: a secondary cannot see which connections have ended. */
BPF_TABLE_PINNED("lru_hash", struct colo_flow_key, struct colo_off, colo_offs, COLO_FLOWS,
		 COLO_PIN "/colo_offs");

BPF_TABLE_PINNED("hash", struct colo_flow_key, struct colo_lasting, colo_last, COLO_FLOWS,
		 COLO_PIN "/colo_last", BPF_F_NO_PREALLOC);

/* The epoch whose offsets apply now; 0: none do. */
static __always_inline __u64 colo_off_epoch(struct colo_config *conf, __u64 epoch)
{
	return conf->mode == COLO_SOLO ? conf->lasting_epoch : epoch;
}

/* What `epoch` (not 0) has taught of the connection; with `make`, a slot to learn into. */
static __always_inline struct colo_off_slot *colo_off_find(struct colo_flow_key *key,
							   __u64 epoch, int make)
{
	struct colo_off *off, blank = {};
	struct colo_off_slot *slot;
	__u64 was;

	off = make ? colo_offs.lookup_or_try_init(key, &blank) : colo_offs.lookup(key);
	if (!off)
		return 0;
	slot = &off->slot[epoch & 1];
	was = slot->epoch;
	if (was == epoch)
		return slot;
	/* Both directions may find the old epoch here: one of them empties the slot. */
	if (make && __sync_val_compare_and_swap(&slot->epoch, was, epoch) == was)
		slot->flags = 0;
	return make ? slot : 0;
}

/* The SVM sent its SYN: remember its numbers. A retransmission changes nothing. */
static __always_inline void colo_off_syn(struct colo_off_slot *slot, __u32 isn,
					 struct colo_opts *opts)
{
	if (slot->flags & COLO_OFF_ISN && slot->isn == isn)
		return;
	slot->isn = isn;
	slot->ts_isn = opts->tsval;
	slot->flags = COLO_OFF_ISN | (opts->ts ? COLO_OFF_TS_ISN : 0);
}

/*
 * The SVM's SYN is known, the PVM's not yet. Whoever serves by the time the first ACK comes has to
 * learn from it: the primary may have died in between.
 */
static __always_inline int colo_off_half(struct colo_off_slot *slot)
{
	return (slot->flags & (COLO_OFF_ISN | COLO_OFF_DELTA)) == COLO_OFF_ISN;
}

/* The first ACK answers the PVM's SYN. */
static __always_inline void colo_off_learn(struct colo_off_slot *slot, struct colo_pkt *pkt,
					   struct colo_opts *opts)
{
	if (colo_off_half(slot)) {
		slot->delta = slot->isn + 1 - pkt->ack;
		slot->flags |= COLO_OFF_DELTA;
		if (slot->flags & COLO_OFF_TS_ISN && opts->ts) {
			slot->ts_delta = slot->ts_isn - opts->tsecr;
			slot->flags |= COLO_OFF_TS_DELTA;
		}
	}
	if (opts->ts && (!(slot->flags & COLO_OFF_TS_SEEN) ||
			 COLO_AFTER(opts->tsecr, slot->ts_seen))) {
		slot->ts_seen = opts->tsecr;
		slot->flags |= COLO_OFF_TS_SEEN;
	}
}

static __always_inline __u32 colo_off_ts(struct colo_off_slot *slot)
{
	return slot->flags & COLO_OFF_TS_DELTA ? slot->ts_delta : 0;
}

/* Towards the VM: what the client echoes, in the SVM's clock. */
static __always_inline __u32 colo_off_tsecr(struct colo_off_slot *slot, __u32 tsecr)
{
	tsecr += colo_off_ts(slot);
	if (slot->flags & COLO_OFF_TS_SENT && COLO_AFTER(tsecr, slot->ts_sent))
		return slot->ts_sent;
	return tsecr;
}

/* From the VM: its TSval, in the clock the client knows. */
static __always_inline __u32 colo_off_tsval(struct colo_off_slot *slot, __u32 tsval)
{
	if (!(slot->flags & COLO_OFF_TS_SENT) || COLO_AFTER(tsval, slot->ts_sent)) {
		slot->ts_sent = tsval;
		slot->flags |= COLO_OFF_TS_SENT;
	}
	tsval -= colo_off_ts(slot);
	if (slot->flags & COLO_OFF_TS_SEEN && COLO_AFTER(slot->ts_seen, tsval))
		return slot->ts_seen;
	return tsval;
}

/* A SYN begins another connection: what was known of the tuple is not about it. */
static __always_inline void colo_last_end(struct colo_flow_key *key, __u8 flags)
{
	if (flags & COLO_TCP_SYN)
		colo_last.delete(key);
}

/* Towards the VM: ACK, SACK and TSecr, from the client's numbers to the VM's. */
static __always_inline int colo_rewrite_in(struct __sk_buff *skb, struct colo_config *conf,
					   struct colo_pkt *pkt, __u64 epoch)
{
	int learn = conf->mode == COLO_SECONDARY;
	struct colo_flow_key key = {};
	struct colo_opts *opts;
	struct colo_off_slot *slot;

	colo_key_from_client(pkt, &key);
	colo_last_end(&key, pkt->flags);
	epoch = colo_off_epoch(conf, epoch);
	if (!epoch || !(pkt->flags & COLO_TCP_ACK))
		return 0;
	opts = colo_opts_find(skb, pkt);
	if (!opts)
		return -1;
	slot = colo_off_find(&key, epoch, learn && opts->ts);
	if (!slot)
		return 0;
	if (learn || colo_off_half(slot))
		colo_off_learn(slot, pkt, opts);
	if (slot->flags & COLO_OFF_DELTA && colo_put_ack(skb, pkt, opts, slot->delta))
		return -1;
	if (!opts->ts)
		return 0;
	return colo_put(skb, pkt, opts->ts + 4, opts->tsecr, colo_off_tsecr(slot, opts->tsecr));
}

/* From the VM: sequence number and TSval. Its SYN is left as it is and teaches. */
static __always_inline int colo_rewrite_out(struct __sk_buff *skb, struct colo_config *conf,
					    struct colo_pkt *pkt, __u64 epoch)
{
	int learn = conf->mode == COLO_SECONDARY;
	__u32 syn = pkt->flags & COLO_TCP_SYN;
	struct colo_flow_key key = {};
	struct colo_opts *opts;
	struct colo_off_slot *slot;
	__u32 tsval;

	colo_key_from_vm(pkt, &key);
	colo_last_end(&key, pkt->flags);
	epoch = colo_off_epoch(conf, epoch);
	if (!epoch || (syn && !learn))
		return 0;
	opts = colo_opts_find(skb, pkt);
	if (!opts)
		return -1;
	slot = colo_off_find(&key, epoch, learn && (syn || opts->ts));
	if (!slot)
		return 0;
	if (syn)
		colo_off_syn(slot, pkt->seq, opts);
	tsval = opts->ts ? colo_off_tsval(slot, opts->tsval) : 0;
	if (syn)
		return 0;
	if (slot->flags & COLO_OFF_DELTA &&
	    colo_put(skb, pkt, pkt->l4 + 4, pkt->seq, pkt->seq - slot->delta))
		return -1;
	return opts->ts ? colo_put(skb, pkt, opts->ts, opts->tsval, tsval) : 0;
}

/*
 * ICMP errors quote the segment they are about, with at least its ports and sequence number. What
 * comes for the VM quotes a segment of its own, in the client's numbers; what it sends quotes one
 * of the client's, whose ACK is in the VM's. Returns 0 and fills `quoted` and the `key` of its
 * connection for a TCP segment. `in`: the frame comes for the VM.
 */
static __always_inline int colo_icmp_quotes(struct __sk_buff *skb, struct colo_pkt *pkt,
					    struct colo_pkt *quoted, struct colo_flow_key *key,
					    int in)
{
	__u32 at = pkt->l4 + 8, word;
	struct ipv6hdr ip6;
	struct iphdr ip;
	__u16 ports[2];

	if (pkt->fragment || !colo_is_ip(pkt))
		return -1;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (pkt->proto == IPPROTO_ICMP && (pkt->icmp_type == 3 || pkt->icmp_type == 11 ||
					   pkt->icmp_type == 12)) {
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 ||
		    ip.protocol != IPPROTO_TCP || ip.frag_off & bpf_htons(0x1fff))
			return -1;
		quoted->src[2] = quoted->dst[2] = bpf_htonl(0xffff);
		quoted->src[3] = ip.saddr;
		quoted->dst[3] = ip.daddr;
		quoted->l4 = at + ip.ihl * 4;
	} else if (pkt->proto == IPPROTO_ICMPV6 && pkt->icmp_type >= 1 && pkt->icmp_type <= 4) {
		if (bpf_skb_load_bytes(skb, at, &ip6, sizeof(ip6)) || ip6.version != 6 ||
		    ip6.nexthdr != IPPROTO_TCP)
			return -1;
		__builtin_memcpy(quoted->src, &ip6.saddr, 16);
		__builtin_memcpy(quoted->dst, &ip6.daddr, 16);
		quoted->l4 = at + sizeof(ip6);
	} else {
		return -1;
	}
	if (quoted->l4 + 8 > pkt->end || bpf_skb_load_bytes(skb, quoted->l4, ports, 4) ||
	    bpf_skb_load_bytes(skb, quoted->l4 + 4, &word, 4))
		return -1;
	quoted->sport = ports[0];
	quoted->dport = ports[1];
	quoted->seq = bpf_ntohl(word);
	quoted->vlan = pkt->vlan;
	quoted->inner_vlan = pkt->inner_vlan;
	quoted->nic = pkt->nic;
	quoted->sum = pkt->sum;		/* the ICMP checksum covers it */
	if (in)
		colo_key_from_vm(quoted, key);
	else
		colo_key_from_client(quoted, key);
	if (quoted->l4 + 12 > pkt->end || bpf_skb_load_bytes(skb, quoted->l4 + 8, &word, 4))
		return 0;
	quoted->ack = bpf_ntohl(word);
	quoted->flags = COLO_TCP_ACK;	/* that was quoted, too */
	return 0;
}

/* Translate what was quoted; `delta`: VM number - number outside. */
static __always_inline int colo_quote_put(struct __sk_buff *skb, struct colo_pkt *quoted,
					  __u32 delta, int in)
{
	if (in)
		return colo_put(skb, quoted, quoted->l4 + 4, quoted->seq, quoted->seq + delta);
	if (!(quoted->flags & COLO_TCP_ACK))
		return 0;
	return colo_put(skb, quoted, quoted->l4 + 8, quoted->ack, quoted->ack - delta);
}

/* The epoch offsets, in an ICMP error. -1: the frame could not be written. */
static __always_inline int colo_rewrite_quoted(struct __sk_buff *skb, struct colo_config *conf,
					       struct colo_pkt *pkt, __u64 epoch, int in)
{
	struct colo_flow_key key = {};
	struct colo_off_slot *slot;
	struct colo_pkt quoted;

	epoch = colo_off_epoch(conf, epoch);
	if (!epoch || colo_icmp_quotes(skb, pkt, &quoted, &key, in))
		return 0;
	slot = colo_off_find(&key, epoch, 0);
	if (!slot || !(slot->flags & COLO_OFF_DELTA))
		return 0;
	return colo_quote_put(skb, &quoted, slot->delta, in);
}

#endif /* COLO_SEQADJ_H */
