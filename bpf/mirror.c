// SPDX-License-Identifier: GPL-2.0-only
/*
 * The client's frames reach both VMs, and the secondary's side of the link.
 *
 *   primary    clients ──▶ br0 ──▶ tap egress: colo_mir_cli ──▶ PVM
 *                                       └─ clone, tag epoch ══▶ link
 *   secondary  link ingress: colo_mir_link ── ACK rewritten ──▶ tap ──▶ SVM
 *              SVM ──▶ tap ingress: colo_mir_svm ── SEQ rewritten, tag epoch ══▶ link
 *   both       colo_last_in and colo_last_out, next to the client side: offsets that outlived
 *              a takeover; run by the control plane: colo_beacon, colo_farewell ══▶ link, colo_age
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/pkt_cls.h>
#include <bcc/proto.h>

#include "colo_abi.h"
#include "colo_verifier.h"
#include "colo_maps.h"
#include "colo_finish.h"
#include "colo_lock.h"
#include "colo_table.h"
#include "colo_parse.h"
#include "colo_link.h"
#include "colo_option.h"
#include "colo_rewrite.h"
#include "colo_hold.h"
#include "colo_gone.h"
#include "colo_said.h"
#include "colo_beat.h"

#define COLO_AGE_MAX	256	/* places one run of colo_age looks at */
#define CLI	COLO_PROG_MIR_CLI
#define LINK	COLO_PROG_MIR_LINK
#define OUT	COLO_PROG_MIR_SVM

static __always_inline struct colo_conf *colo_conf_get(void)
{
	__u32 zero = 0;

	return colo_conf.lookup(&zero);
}

static __always_inline __u64 colo_epoch_get(void)
{
	__u32 zero = 0;
	struct colo_turn *turn = colo_turn.lookup(&zero);

	return turn ? *(volatile __u64 *)&turn->word >> 1 : 0;
}

/*
 * Follow the client's side of a connection. -1: its SYN finds no room; neither VM may see it,
 * or the PVM would answer on a flow that cannot be compared.
 */
static __always_inline int colo_client_track(struct colo_pkt *pkt)
{
	struct colo_flow_key key = {};
	struct colo_flow *flow;

	colo_key_from_client(pkt, &key);
	flow = colo_flows.lookup(&key);
	if (!flow && pkt->flags & COLO_TCP_SYN)
		flow = colo_flow_make(&key);
	if (!flow)
		return pkt->flags & COLO_TCP_SYN ? -1 : 0;
	flow->seen_ns = bpf_ktime_get_boot_ns();
	colo_gone_track(pkt, flow, &key);
	if (!(pkt->flags & COLO_TCP_ACK))
		return 0;
	if (!flow->c_known || COLO_AFTER(pkt->ack, flow->c_ack)) {
		flow->c_ack = pkt->ack;
		flow->c_acked_ns = flow->seen_ns;
		flow->c_known = 1;
	}
	return 0;
}

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
static __always_inline int colo_last_idle(struct colo_conf *conf)
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
	struct colo_conf *conf = colo_conf_get();
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

static __always_inline int colo_rewrite_to_vm(struct __sk_buff *skb, struct colo_conf *conf,
					      struct colo_pkt *pkt, __u64 epoch)
{
	return colo_is_tcp(pkt) ? colo_rewrite_in(skb, conf, pkt, epoch) :
				  colo_rewrite_quoted(skb, conf, pkt, epoch, 1);
}

/* Tap egress: the client side, or the link, has a frame for the VM. */
int colo_mir_cli(struct __sk_buff *skb)
{
	struct colo_conf *conf = colo_conf_get();
	struct colo_pkt pkt = {};
	__u64 epoch = colo_epoch_get();

	if (!conf)
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_NO_CONF);
	if (conf->mode == COLO_SECONDARY || conf->mode == COLO_WITHHOLD)
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_NO_PAIR);
	if (colo_parse(skb, &pkt))
		return colo_finish(skb, CLI, conf->mode == COLO_SOLO ? COLO_V_PASS : COLO_V_DROP,
				   COLO_R_MALFORMED);
	pkt.nic = colo_nic_of(skb, conf);
	if (colo_is_tcp(&pkt) && colo_client_track(&pkt) && conf->mode != COLO_SOLO)
		return colo_finish(skb, CLI, COLO_V_DROP, COLO_R_TABLE_FULL);
	if (conf->mode == COLO_SOLO) {
		if (colo_rewrite_to_vm(skb, conf, &pkt, epoch))
			return colo_finish(skb, CLI, COLO_V_DROP, COLO_R_MALFORMED);
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_SOLO);
	}
	if (!conf->vni)
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_NO_PAIR);
	if (pkt.nic == COLO_NICS || colo_link_tag(skb, conf, epoch, pkt.nic) ||
	    bpf_clone_redirect(skb, conf->link_ifindex, 0))
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_CLONE_FAILED);
	return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_INPUT);
}

/* Link ingress on the secondary: what the PVM's client sent. */
int colo_mir_link(struct __sk_buff *skb)
{
	struct colo_conf *conf = colo_conf_get();
	struct colo_pkt pkt = {};
	__u64 epoch = colo_epoch_get(), *heard;
	__u32 word = COLO_LIVE_HEARD_NS, nic, reason;
	__u16 tag = 0;

	heard = colo_live.lookup(&word);
	if (!conf || !heard || !conf->vni)
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_NO_PAIR);
	if (colo_link_in(skb, conf, &tag, &nic))
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_NOT_OURS);
	colo_link_hear(heard);
	if (colo_parse(skb, &pkt))
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_MALFORMED);
	reason = colo_link_word(pkt.ethertype, heard);
	if (reason)
		return colo_finish(skb, LINK, COLO_V_DROP, reason);
	if (conf->mode != COLO_SECONDARY && conf->mode != COLO_WITHHOLD)
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_WITHHELD);
	pkt.nic = nic;
	/* A past epoch's datagram is in the state already; TCP knows a duplicate when it sees one. */
	if (!colo_is_tcp(&pkt) && epoch && (__s16)(tag - (__u16)epoch) < 0)
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_STALE_EPOCH);
	if (colo_rewrite_to_vm(skb, conf, &pkt, epoch))
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_MALFORMED);
	colo_count(LINK, COLO_V_DELIVER, COLO_R_INPUT, skb->len);
	return bpf_redirect(conf->tap_ifindex[nic & (COLO_NICS - 1)], 0);
}

/*
 * Does anybody hear what the SVM says? With a pairing in force while it is withheld it takes over from
 * a VM that is gone: clients still reach it over the link, what it answers is kept.
 */
static __always_inline int colo_svm_heard(struct colo_conf *conf)
{
	return conf->mode == COLO_SECONDARY || conf->mode == COLO_SOLO ||
	       (conf->mode == COLO_WITHHOLD && conf->vni);
}

/* Tap ingress on the secondary: what the SVM produced. */
int colo_mir_svm(struct __sk_buff *skb)
{
	struct colo_conf *conf = colo_conf_get();
	struct colo_pkt pkt = {};
	__u64 epoch = colo_epoch_get();

	if (!conf || !colo_svm_heard(conf))
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_WITHHELD);
	if (colo_parse(skb, &pkt))
		return colo_finish(skb, OUT, conf->mode == COLO_SOLO ? COLO_V_PASS : COLO_V_DROP,
				   COLO_R_MALFORMED);
	pkt.nic = colo_nic_of(skb, conf);
	if (pkt.nic == COLO_NICS)
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_NO_CONF);
	if (conf->mode != COLO_SOLO)
		colo_said_keep(skb, &pkt, epoch);
	if (conf->mode == COLO_WITHHOLD)
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_WITHHELD);
	if (colo_is_tcp(&pkt) ? colo_rewrite_out(skb, conf, &pkt, epoch) :
				colo_rewrite_quoted(skb, conf, &pkt, epoch, 0))
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_MALFORMED);
	if (conf->mode == COLO_SOLO) {
		skb->mark = skb->mark == COLO_MARK_RELEASED ? 0 : skb->mark;
		return colo_finish(skb, OUT, COLO_V_PASS, COLO_R_SOLO);
	}
	if (!conf->vni || colo_link_tag(skb, conf, epoch, pkt.nic))
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_NO_PAIR);
	colo_count(OUT, COLO_V_LINK, COLO_R_PLAIN, skb->len);
	return bpf_redirect(conf->link_ifindex, 0);
}

/* Run by the control plane: the plane's first beat, or the first after it has stopped. */
int colo_beacon(struct __sk_buff *skb)
{
	return colo_beat(skb, colo_conf_get(), colo_epoch_get());
}

/*
 * Run by the control plane, when the configuration names the pairing no more (so that nothing can
 * be sent behind this): tell its other plane. Pairing and address stand behind the MAC header.
 */
int colo_farewell(struct __sk_buff *skb)
{
	struct colo_conf *conf = colo_conf_get();
	__u32 to[2] = {};

	if (!conf || bpf_skb_load_bytes(skb, 14, to, sizeof(to)))
		return colo_finish(skb, COLO_PROG_FAREWELL, COLO_V_DROP, COLO_R_NO_CONF);
	if (colo_link_to(skb, to[0], to[1], 0) || bpf_clone_redirect(skb, conf->link_ifindex, 0))
		return colo_finish(skb, COLO_PROG_FAREWELL, COLO_V_DROP, COLO_R_CLONE_FAILED);
	colo_count(COLO_PROG_FAREWELL, COLO_V_LINK, COLO_R_FAREWELL, skb->len);
	return TC_ACT_SHOT;
}

/*
 * Run by the control plane, never attached: take out entries of the flow table whose connection
 * has ended. The input's first four bytes are the place to start at. Returns 0.
 */
int colo_age(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 start = 0;
	int i;

	if (bpf_skb_load_bytes(skb, 0, &start, 4))
		return 0;
	for (i = 0; i < COLO_AGE_MAX; i++)
		colo_place_look((start + i) % COLO_PLACES, now);
	return 0;
}
