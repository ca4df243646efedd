/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The TCP options whose numbers are translated: timestamps (RFC 7323) and SACK (RFC 2018).
 *
 * What a loop carries from turn to turn is kept in map memory: the verifier then knows nothing
 * of it, and one turn looks to it like the next.
 */
#ifndef COLO_OPTION_H
#define COLO_OPTION_H

#define COLO_OPT_END		0
#define COLO_OPT_NOP		1
#define COLO_OPT_SACK		5
#define COLO_OPT_TS		8
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
 * Write a 32-bit number of the TCP header. Options need not be aligned: at an odd place the
 * difference counts in swapped bytes.
 */
static __always_inline int colo_put(struct __sk_buff *skb, struct colo_pkt *pkt, __u32 at,
				    __u32 value, __u32 now)
{
	__u32 from = bpf_htonl(value), to = bpf_htonl(now), diff;

	if (from == to)
		return 0;
	diff = bpf_csum_diff(&from, 4, &to, 4, 0);
	if ((at - pkt->l4) & 1)
		diff = diff >> 8 | diff << 24;
	if (bpf_l4_csum_replace(skb, pkt->sum, 0, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, at, &to, 4, 0);
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

#endif /* COLO_OPTION_H */
