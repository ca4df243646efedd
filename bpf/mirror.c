// SPDX-License-Identifier: GPL-2.0-only
/*
 * The client's frames reach both VMs, and the secondary's side of the link.
 *
 *   primary    clients ──▶ br0 ──▶ tap egress: colo_mir_cli ──▶ PVM
 *                                       └─ clone, tag epoch ══▶ link
 *   secondary  link ingress: colo_mir_link ── ACK rewritten ──▶ tap ──▶ SVM
 *              SVM ──▶ tap ingress: colo_mir_svm ── SEQ rewritten, tag epoch ══▶ link
 */
#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_link.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_replay.h"
#include "colo_seqadj.h"
#include "colo_table.h"
#include "colo_trust.h"

#define CLI	COLO_PROG_MIR_CLI
#define LINK	COLO_PROG_MIR_LINK
#define OUT	COLO_PROG_MIR_SVM

static __always_inline int colo_rewrite_to_vm(struct __sk_buff *skb, struct colo_config *conf,
					      struct colo_pkt *pkt, __u64 epoch)
{
	return colo_is_tcp(pkt) ? colo_rewrite_in(skb, conf, pkt, epoch) :
				  colo_rewrite_quoted(skb, conf, pkt, epoch, 1);
}

/* Tap egress: the client side, or the link, has a frame for the VM. */
int colo_mir_cli(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_pkt pkt = {};
	__u64 epoch = colo_epoch_get();

	if (!conf)
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_NO_CONF);
	if (conf->mode == COLO_SECONDARY || conf->mode == COLO_WITHHOLD)
		return colo_finish(skb, CLI, COLO_V_PASS, COLO_R_NO_PAIR);
	if (colo_parse(skb, &pkt))
		return colo_finish(skb, CLI, conf->mode == COLO_SOLO ? COLO_V_PASS : COLO_V_DROP,
				   COLO_R_MALFORMED);
	if (colo_poses(skb, &pkt))
		return colo_finish(skb, CLI, COLO_V_DROP, COLO_R_POSES);
	pkt.nic = colo_nic_of(skb, conf);
	if (colo_is_tcp(&pkt) && pkt.flags & COLO_TCP_SYN && colo_opts_no_mptcp(skb, &pkt))
		return colo_finish(skb, CLI, COLO_V_DROP, COLO_R_MALFORMED);
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
	struct colo_config *conf = colo_conf_get();
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
	/* A datagram of a past epoch is in the SVM's state already. TCP detects duplicates. */
	if (!colo_is_tcp(&pkt) && epoch && (__s16)(tag - (__u16)epoch) < 0)
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_STALE_EPOCH);
	if (colo_rewrite_to_vm(skb, conf, &pkt, epoch))
		return colo_finish(skb, LINK, COLO_V_DROP, COLO_R_MALFORMED);
	colo_count(LINK, COLO_V_DELIVER, COLO_R_INPUT, skb->len);
	return bpf_redirect(conf->tap_ifindex[nic & (COLO_NICS - 1)], 0);
}

/*
 * Does the SVM's output go anywhere? A withheld SVM with a pairing in force is about to take over
 * from a VM that is gone: clients still reach it over the link, and its answers go to the replay
 * buffer.
 */
static __always_inline int colo_svm_heard(struct colo_config *conf)
{
	return conf->mode == COLO_SECONDARY || conf->mode == COLO_SOLO ||
	       (conf->mode == COLO_WITHHOLD && conf->vni);
}

/* Tap ingress on the secondary: what the SVM produced. */
int colo_mir_svm(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_pkt pkt = {};
	__u64 epoch = colo_epoch_get();

	if (!conf || !colo_svm_heard(conf))
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_WITHHELD);
	if (colo_mac_wrong(skb, colo_nic_of(skb, conf)))
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_WRONG_MAC);
	if (colo_parse(skb, &pkt))
		return colo_finish(skb, OUT, conf->mode == COLO_SOLO ? COLO_V_PASS : COLO_V_DROP,
				   COLO_R_MALFORMED);
	if (colo_poses(skb, &pkt))
		return colo_finish(skb, OUT, COLO_V_DROP, COLO_R_POSES);
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

