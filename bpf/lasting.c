// SPDX-License-Identifier: GPL-2.0-only
/*
 * Offsets that outlived a takeover: what the VM numbers is not what its clients were told before.
 *
 *   clients ──▶ br0 ──▶ tap egress, first: colo_last_in ──▶ (mirror.c) ──▶ VM
 *   clients ◀── br0 ◀── tap ingress, last: colo_last_out ◀── (compare.c, mirror.c) ◀── VM
 *
 * colo_seqadj.h says what they are.
 */
#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_link.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_seqadj.h"

/* The lasting offsets of the frame's connection, if it has some. A SYN begins a new one. */
static __always_inline struct colo_lasting *colo_last_of(struct colo_pkt *pkt,
							 struct colo_flow_key *key)
{
	struct colo_lasting *last;

	colo_last_end(key, pkt->flags);
	last = colo_last.lookup(key);
	if (last)
		last->seen_ns = bpf_ktime_get_boot_ns();
	return last;
}

/* Nobody has a lasting offset, or the client side is not ours. */
static __always_inline int colo_last_idle(struct colo_config *conf)
{
	return !conf || !conf->lasting || conf->mode == COLO_SECONDARY;
}

/* From the client's numbers to the VM's. */
static __always_inline int colo_last_put_in(struct __sk_buff *skb, struct colo_pkt *pkt,
					    struct colo_opts *opts, struct colo_lasting *last)
{
	if (colo_put_ack(skb, pkt, opts, last->delta))
		return -1;
	return opts->ts ? colo_put(skb, pkt, opts->ts + 4, opts->tsecr,
				   opts->tsecr + last->ts_delta) : 0;
}

/* From the VM's numbers to the client's. */
static __always_inline int colo_last_put_out(struct __sk_buff *skb, struct colo_pkt *pkt,
					     struct colo_opts *opts, struct colo_lasting *last)
{
	if (colo_put(skb, pkt, pkt->l4 + 4, pkt->seq, pkt->seq - last->delta))
		return -1;
	return opts->ts ? colo_put(skb, pkt, opts->ts, opts->tsval,
				   opts->tsval - last->ts_delta) : 0;
}

/* An ICMP error about a connection that has lasting offsets. */
static __always_inline int colo_last_quoted(struct __sk_buff *skb, __u32 prog,
					    struct colo_pkt *pkt, int in)
{
	struct colo_flow_key key = {};
	struct colo_lasting *last;
	struct colo_pkt quoted;

	if (colo_icmp_quotes(skb, pkt, &quoted, &key, in))
		return colo_finish(skb, prog, COLO_V_PASS, COLO_R_PLAIN);
	last = colo_last.lookup(&key);
	if (!last)
		return colo_finish(skb, prog, COLO_V_PASS, COLO_R_PLAIN);
	if (colo_quote_put(skb, &quoted, last->delta, in))
		return colo_finish(skb, prog, COLO_V_DROP, COLO_R_MALFORMED);
	return colo_finish(skb, prog, COLO_V_PASS, COLO_R_REWRITTEN);
}

static __always_inline int colo_last_run(struct __sk_buff *skb, __u32 prog, int in)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_flow_key key = {};
	struct colo_lasting *last;
	struct colo_opts *opts;
	struct colo_pkt pkt = {};

	if (colo_last_idle(conf) || colo_parse(skb, &pkt))
		return colo_finish(skb, prog, COLO_V_PASS, COLO_R_PLAIN);
	pkt.nic = colo_nic_of(skb, conf);
	if (!colo_is_tcp(&pkt))
		return colo_last_quoted(skb, prog, &pkt, in);
	if (in)
		colo_key_from_client(&pkt, &key);
	else
		colo_key_from_vm(&pkt, &key);
	last = colo_last_of(&pkt, &key);
	if (!last || (in && !(pkt.flags & COLO_TCP_ACK)))
		return colo_finish(skb, prog, COLO_V_PASS, COLO_R_PLAIN);
	opts = colo_opts_find(skb, &pkt);
	if (!opts || (in ? colo_last_put_in(skb, &pkt, opts, last) :
			   colo_last_put_out(skb, &pkt, opts, last)))
		return colo_finish(skb, prog, COLO_V_DROP, COLO_R_MALFORMED);
	return colo_finish(skb, prog, COLO_V_PASS, COLO_R_REWRITTEN);
}

/* Tap egress, first. */
int colo_last_in(struct __sk_buff *skb)
{
	return colo_last_run(skb, COLO_PROG_LAST_IN, 1);
}

/* Tap ingress, last. */
int colo_last_out(struct __sk_buff *skb)
{
	return colo_last_run(skb, COLO_PROG_LAST_OUT, 0);
}
