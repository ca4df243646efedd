// SPDX-License-Identifier: GPL-2.0-only
/*
 * The primary's side of the proxy: what the two VMs produced is compared here, and only what
 * both produced leaves.
 *
 *   clients <── br0 <── tap ingress: colo_cmp_pvm <── PVM
 *                ^            │ hold         ^
 *                │            v              │ digests
 *                │        hold store     flow, notes
 *                │            │              │
 *                └─ carrier <─┴── link ingress: colo_cmp_svm <══ SVM's host
 *
 * Of two equal frames the first is dropped after its digest is noted (the PVM's is also copied
 * to the hold store), and the second carries: the PVM's own skb passes, or the SVM's skb takes
 * the stored bytes out, or leaves itself under the header of what is held. A long frame of the
 * PVM is not copied but waits in the delay line (colo_delay_in.h). colo_flush sends what a loaded
 * checkpoint contains.
 *
 * Five functions handle a frame, one after the other: parse, prepare (decide what is to be done,
 * under the flow's lock: colo_pvm.h, colo_svm.h, colo_datagram.h), hash (colo_hash.h), conclude,
 * carry out.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_carry.h"
#include "colo_count.h"
#include "colo_datagram.h"
#include "colo_delay_in.h"
#include "colo_delay_out.h"
#include "colo_event.h"
#include "colo_flow.h"
#include "colo_hash.h"
#include "colo_hold.h"
#include "colo_link.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_pvm.h"
#include "colo_release.h"
#include "colo_reset.h"
#include "colo_scratch.h"
#include "colo_svm.h"
#include "colo_table.h"
#include "colo_trust.h"
#include "colo_xmit.h"

#define PVM		COLO_PROG_CMP_PVM
#define SVM		COLO_PROG_CMP_SVM
#define PARK		COLO_PROG_PARK

/* ---- the hooks ---- */

/*
 * The frame's connection has no entry: colo_enter makes one and begins with the frame again, at
 * `caller`. Returns if there is no room.
 */
static __always_inline void colo_enter_at(struct __sk_buff *skb, struct colo_work *work,
					  __u32 caller)
{
	__u32 entered = work->entered;

	work->entered = 0;
	work->caller = caller;
	if (!entered)
		colo_calls.call(skb, COLO_CALL_ENTER);
}

/* Tap ingress: the PVM has sent a frame. */
int colo_cmp_pvm(struct __sk_buff *skb)
{
	struct colo_config *conf;
	struct colo_work *work;
	struct colo_flow *flow;
	struct colo_buf *buf;
	struct colo_pkt *pkt;

	if (skb->mark == COLO_MARK_RELEASED) {
		skb->mark = 0;
		return colo_finish(skb, PVM, COLO_V_PASS, COLO_R_RELEASED);
	}
	conf = colo_conf_get();
	work = colo_work_get();
	buf = colo_buf_get();
	if (!conf || !work || !buf || !conf->hold_slots)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
	work->walk.key = conf->key[1];
	colo_now_get(conf, &work->now, bpf_ktime_get_boot_ns());
	if (conf->mode != COLO_PAIRING && conf->mode != COLO_PRIMARY && conf->mode != COLO_SOLO)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_WITHHELD);
	if (colo_mac_wrong(skb, colo_nic_of(skb, conf)))
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_WRONG_MAC);
	pkt = &work->pkt;
	if (colo_parse(skb, pkt))
		return colo_finish(skb, PVM, conf->mode == COLO_SOLO ? COLO_V_PASS : COLO_V_DROP,
				   COLO_R_MALFORMED);
	pkt->nic = colo_nic_of(skb, conf);
	if (pkt->nic == COLO_NICS)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
	colo_key_from_vm(pkt, &work->flow);
	if (!colo_is_stream(pkt)) {
		if (colo_poses(skb, pkt))	/* of another type than IP, so never a stream */
			return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_POSES);
		if (work->now.mode == COLO_SOLO)
			return colo_finish(skb, PVM, COLO_V_PASS, COLO_R_SOLO);
		if (colo_is_neighbour(pkt))
			return colo_pvm_neighbour(skb, conf, work);
		if (skb->gso_size)	/* UDP segmentation offload is not offered to guests */
			return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_TOO_BIG);
		if (colo_is_reset(pkt)) {
			colo_calls.call(skb, COLO_CALL_PVM_RST);
			return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
		}
		colo_dgram_digest(skb, conf, work, buf);
		return colo_pvm_dgram(skb, conf, work, 0);
	}
	flow = colo_flows.lookup(&work->flow);
	if (!flow) {
		colo_enter_at(skb, work, COLO_CALL_PVM);
		return colo_finish(skb, PVM, conf->mode == COLO_SOLO ? COLO_V_PASS : COLO_V_DROP,
				   COLO_R_TABLE_FULL);
	}
	work->entered = 0;
	if (pkt->flags & COLO_TCP_SYN)
		colo_tcp_offer(skb, pkt, &work->offer);
	if (colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS))
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_BUSY);
	colo_pvm_prepare(skb, conf, work, buf, flow);
	if (work->step == COLO_STEP_HASH && colo_walk_first(work, buf)) {
		colo_calls.call(skb, COLO_CALL_PVM_LONG);
		colo_unlock(&flow->lock);
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
	}
	return colo_pvm_end(skb, conf, work, flow);
}

/* The rest of a long frame. Returns its flow, which is still locked. */
static __always_inline struct colo_flow *colo_long_hash(struct colo_work *work,
							struct colo_buf *buf)
{
	struct colo_flow *flow = colo_flows.lookup(&work->flow);

	if (flow)
		colo_walk_hash(work, buf, COLO_HASH_TURNS);
	return flow;
}

/* Goes on where colo_cmp_pvm was in the middle of a long frame. The flow is still locked. */
int colo_long_pvm(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_buf *buf = colo_buf_get();
	struct colo_work *work = colo_work_again();
	struct colo_flow *flow;

	if (!conf || !work || !buf)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
	flow = colo_long_hash(work, buf);
	if (!flow)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_FLOW);
	return colo_pvm_end(skb, conf, work, flow);
}

/* Behind the delay line: may the frame leave now? Or is it the plane's own beat? */
int colo_park(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_work *work = colo_work_get();
	struct colo_flow *flow;
	struct colo_slot *slot;

	if (!conf || !work)
		return colo_finish(skb, PARK, COLO_V_DROP, COLO_R_NO_CONF);
	colo_now_get(conf, &work->now, bpf_ktime_get_boot_ns());
	if (skb->protocol == bpf_htons(COLO_BEACON_ETHERTYPE))
		return colo_beat(skb, conf, work->now.epoch);
	if ((skb->mark & ~(COLO_NICS - 1)) == COLO_MARK_CARRIER)
		return colo_carry_on(skb, work);
	work->walk.key = conf->key[1];
	slot = colo_unpark_slot(skb, work);
	if (!slot)
		return colo_finish(skb, PARK, COLO_V_DROP, COLO_R_OLD);
	flow = colo_flows.lookup(&work->flow);
	if (!flow) {
		if (!colo_slot_claim(slot))
			colo_slot_free(slot);
		return colo_finish(skb, PARK, COLO_V_DROP, COLO_R_NO_FLOW);
	}
	if (colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS)) {
		colo_count(PARK, COLO_V_HOLD, COLO_R_BUSY, skb->len);
		return colo_line_send(skb, conf, COLO_LINE_FIRST);
	}
	colo_unpark(skb, conf, work, flow, slot);
	work->scale = colo_flow_scale(flow);
	colo_unlock(&flow->lock);

	if (work->plan.verdict == COLO_V_PASS) {
		work->out = 1;
		if (work->plan.lower || flow->ack_slot)
			colo_calls.call(skb, COLO_CALL_OWE);
		return colo_park_out(skb, conf, work);
	}
	colo_pvm_told(skb, work, PARK);
	if (work->parked)
		return colo_line_send(skb, conf, work->line);
	if (work->plan.drain)
		colo_calls.call(skb, COLO_CALL_DRAIN);
	return TC_ACT_SHOT;
}

/*
 * Called where a frame of the PVM passes with a lowered ACK or window, or where one of its flow did
 * before. Keeps what the client has to be told later. If it cannot be called, or another CPU has
 * the flow, the client is not told later.
 */
int colo_owe(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_work *work = colo_work_again();
	struct colo_flow *flow;

	if (!conf || !work)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
	flow = colo_flows.lookup(&work->flow);
	if (flow && !colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS)) {
		colo_owe_note(skb, conf, work, flow);
		colo_unlock(&flow->lock);
	}
	if (work->out)
		return colo_park_out(skb, conf, work);
	colo_pvm_told(skb, work, PVM);
	return colo_action(work->plan.verdict);
}

/* The tag of a link frame against our epoch: 0 if both are the same and open. */
static __always_inline __u32 colo_tag_check(struct colo_now *now, __u16 tag)
{
	__s16 ahead = (__s16)(tag - (__u16)now->epoch);
	struct colo_turn_cell *turn;
	__u32 zero = 0;

	if (tag == COLO_EPOCH_NONE || ahead < 0)
		return COLO_R_STALE_EPOCH;
	if (!ahead)
		return now->phase == COLO_TURNING ? COLO_R_TURNING : COLO_R_NONE;
	/* The SVM has been reloaded and nobody told us: nothing verifies any more. */
	turn = colo_turn.lookup(&zero);
	if (turn && now->phase == COLO_OPEN &&
	    __sync_val_compare_and_swap(&turn->word, now->epoch << 1,
					now->epoch << 1 | COLO_TURNING_BIT) == now->epoch << 1)
		colo_tell(COLO_EV_EPOCH_AHEAD, COLO_R_EPOCH_AHEAD, 0, 0, now->epoch);
	return COLO_R_EPOCH_AHEAD;
}

/* Link ingress: a frame of the SVM, or its host's beacon or farewell. */
int colo_cmp_svm(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_work *work = colo_work_get();
	__u64 *heard = colo_live_word(COLO_LIVE_HEARD_NS);
	struct colo_buf *buf = colo_buf_get();
	struct colo_flow *flow;
	struct colo_pkt *pkt;
	__u32 reason, nic;
	__u16 tag = 0;
	__u64 at_ns;

	if (!conf || !work || !buf || !heard || !conf->vni)
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_PAIR);
	if (colo_link_in(skb, conf, &tag, &nic))
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NOT_OURS);
	at_ns = colo_link_hear(heard);
	pkt = &work->pkt;
	if (colo_parse(skb, pkt))
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_MALFORMED);
	reason = colo_link_word(pkt->ethertype, heard);
	if (reason)
		return colo_finish(skb, SVM, COLO_V_DROP, reason);
	work->walk.key = conf->key[1];
	colo_now_get(conf, &work->now, at_ns);
	if (conf->mode != COLO_PAIRING && conf->mode != COLO_PRIMARY)
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_WITHHELD);
	reason = colo_tag_check(&work->now, tag);
	if (reason)
		return colo_finish(skb, SVM, COLO_V_DROP, reason);
	if (colo_is_neighbour(pkt))
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NEIGHBOUR);
	pkt->nic = nic;
	colo_key_from_vm(pkt, &work->flow);
	if (!colo_is_stream(pkt)) {
		if (colo_is_reset(pkt)) {
			colo_calls.call(skb, COLO_CALL_SVM_RST);
			return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_CONF);
		}
		colo_dgram_digest(skb, conf, work, buf);
		return colo_svm_dgram(skb, conf, work, 0);
	}
	/* A guest opens connections too, and the SVM may be the first to. */
	flow = colo_flows.lookup(&work->flow);
	if (!flow) {
		if (pkt->flags & COLO_TCP_SYN)
			colo_enter_at(skb, work, COLO_CALL_SVM);
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_FLOW);
	}
	work->entered = 0;
	if (pkt->flags & COLO_TCP_SYN)
		colo_tcp_offer(skb, pkt, &work->offer);
	if (colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS))
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_BUSY);
	colo_svm_prepare(skb, conf, work, buf, flow);
	if (work->step == COLO_STEP_HASH && colo_walk_first(work, buf)) {
		colo_calls.call(skb, COLO_CALL_SVM_LONG);
		colo_unlock(&flow->lock);
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_CONF);
	}
	return colo_svm_end(skb, conf, work, buf, flow);
}

/* Goes on where colo_cmp_svm was in the middle of a long frame. The flow is still locked. */
int colo_long_svm(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_buf *buf = colo_buf_get();
	struct colo_work *work = colo_work_again();
	struct colo_flow *flow;

	if (!conf || !work || !buf)
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_CONF);
	flow = colo_long_hash(work, buf);
	if (!flow)
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_FLOW);
	return colo_svm_end(skb, conf, work, buf, flow);
}

/*
 * Goes before colo_cmp_pvm or colo_cmp_svm goes on: the first frame of a connection. A program of
 * its own for the verifier's sake, like colo_drain. If it cannot be called there is no room.
 */
int colo_enter(struct __sk_buff *skb)
{
	struct colo_work *work = colo_work_again();

	if (!work)
		return colo_finish(skb, COLO_PROG_ENTER, COLO_V_DROP, COLO_R_NO_CONF);
	colo_flow_make(&work->flow);
	work->entered = 1;
	colo_calls.call(skb, work->caller);
	work->entered = 0;
	return colo_finish(skb, COLO_PROG_ENTER, COLO_V_DROP, COLO_R_TABLE_FULL);
}

/* What is known of the reset in hand, with its digest. */
static __always_inline struct colo_work *colo_reset_work(struct __sk_buff *skb,
							 struct colo_config *conf)
{
	struct colo_buf *buf = colo_buf_get();
	struct colo_work *work = colo_work_again();

	if (!work || !buf)
		return 0;
	colo_dgram_digest(skb, conf, work, buf);
	return work;
}

/* A reset of the PVM: of its connection, then as a frame that is compared as a whole. */
int colo_rst_pvm(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_work *work = conf ? colo_reset_work(skb, conf) : 0;

	if (!conf || !work)
		return colo_finish(skb, PVM, COLO_V_DROP, COLO_R_NO_CONF);
	if (colo_pvm_reset(conf, work) && work->now.may_release)
		return colo_finish(skb, PVM, COLO_V_PASS, COLO_R_OLD);
	return colo_pvm_dgram(skb, conf, work, 1);
}

/* A reset of the SVM. */
int colo_rst_svm(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_work *work = conf ? colo_reset_work(skb, conf) : 0;

	if (!conf || !work)
		return colo_finish(skb, SVM, COLO_V_DROP, COLO_R_NO_CONF);
	return colo_svm_dgram(skb, conf, work, 1);
}

/*
 * Called where colo_cmp_pvm or colo_cmp_svm ended with a frame that verified held ones: it carries
 * them out. If this program cannot be called, the frames wait for a flush.
 *
 * Both VMs may be waiting for an ACK of just these frames. So if there are more than the host takes
 * at once, the carrier goes through the delay line and carries on behind it.
 */
int colo_drain(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_flow *flow;
	struct colo_work *work = colo_work_again();

	if (!conf || !work)
		return colo_finish(skb, COLO_PROG_DRAIN, COLO_V_DROP, COLO_R_NO_CONF);
	flow = colo_flows.lookup(&work->flow);
	if (flow && colo_drain_flow(skb, conf, flow, work)) {
		if (++work->drains < COLO_DRAIN_RUNS)
			colo_calls.call(skb, COLO_CALL_DRAIN);
		if (!conf->park_ifindex)
			return TC_ACT_SHOT;
		skb->mark = COLO_MARK_CARRIER | (work->flow.nic & (COLO_NICS - 1));
		return colo_line_send(skb, conf, COLO_LINE_FIRST);
	}
	if (work->plan.leaves)
		return colo_send_last(skb, conf, work->pkt.nic);
	return TC_ACT_SHOT;
}

/* What a run of colo_flush tells its next repetition, in skb->cb. */
#define COLO_CB_LOOKED	0	/* slots that were looked at */
#define COLO_CB_START	1	/* the input's first four bytes */
#define COLO_CB_SAID	2	/* and the next four */
#define COLO_CB_DONE	3	/* what is returned */

/*
 * Run by the control plane, never attached: send the frames of past epochs (they are in the
 * checkpoint the SVM has loaded), verified ones at the head of their flow, and everything once the
 * VM is solo. The input's first four bytes name a slot: its part of the store is looked at, from
 * there on, a piece of it at each repetition. If the next four are not 0, frames of the replay
 * buffer are sent instead. Returns frames sent | frames left << 16.
 */
int colo_flush(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	struct colo_work *work = colo_work_get();
	__u32 start[2] = {}, ix;
	struct colo_slot *slot;
	int i;

	if (!conf || !work)
		return colo_run_over(skb, COLO_PROG_FLUSH, COLO_R_NO_CONF, 0);
	if (!skb->cb[COLO_CB_LOOKED]) {	/* later the frame may be one that was sent */
		if (bpf_skb_load_bytes(skb, 0, start, 8))
			return colo_run_over(skb, COLO_PROG_FLUSH, COLO_R_NO_CONF, 0);
		skb->cb[COLO_CB_START] = start[0];
		skb->cb[COLO_CB_SAID] = start[1];
	}
	start[0] = skb->cb[COLO_CB_START];
	start[1] = skb->cb[COLO_CB_SAID];
	colo_now_get(conf, &work->now, bpf_ktime_get_boot_ns());
	if (conf->mode != COLO_PRIMARY && conf->mode != COLO_SOLO)
		return colo_run_over(skb, COLO_PROG_FLUSH, COLO_R_WITHHELD, 0);
	if (conf->mode == COLO_PRIMARY && !work->now.heard)	/* the other may serve already */
		return colo_run_over(skb, COLO_PROG_FLUSH, COLO_R_LINK_SILENT, 1 << 16);
	for (i = 0; i < COLO_FLUSH_SLOTS; i++) {
		ix = colo_hold_place(conf, start[0] / COLO_HOLD_PART,
				     start[0] + skb->cb[COLO_CB_LOOKED] + i);
		slot = colo_hold.lookup(&ix);
		if (!slot || slot->state != COLO_SLOT_HELD ||
		    (slot->kind == COLO_SLOT_SAID) != (start[1] != 0))
			continue;
		work->step = colo_flush_take(conf, work, slot, ix + 1);
		if (work->step == COLO_FLUSH_SENT && colo_flush_send(skb, conf, work, slot, ix))
			work->step = COLO_FLUSH_LATER;
		if (work->step == COLO_FLUSH_LATER)
			skb->cb[COLO_CB_DONE] += 1 << 16;
		else if (work->step == COLO_FLUSH_SENT)
			skb->cb[COLO_CB_DONE]++;
	}
	skb->cb[COLO_CB_LOOKED] += COLO_FLUSH_SLOTS;
	return colo_run_over(skb, COLO_PROG_FLUSH, COLO_R_RUN, skb->cb[COLO_CB_DONE]);
}
