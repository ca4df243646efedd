/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A frame of the SVM may carry, byte for byte, the payload of a row of held frames. Then the SVM's
 * frame leaves itself, under the header of the row's first frame, and the row is dropped. The cost
 * does not depend on the length. Two VMs that cut alike send a GSO frame of 64 KB to the client as
 * one skb. The row would leave as 45 skbs, each with an ACK of its own soon after.
 *
 * The payload has been hashed to its end from where it begins (colo_svm_conclude sets plan.whole),
 * and a held frame ends there with the same digest.
 */
#ifndef COLO_SUBSTITUTE_H
#define COLO_SUBSTITUTE_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_flow.h"
#include "colo_hold.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_verifier.h"
#include "colo_xmit.h"

#define COLO_TCP_MAX	60	/* bytes of a TCP header with all options */
#define COLO_PLAIN_L4	(ETH_HLEN + 20)	/* where TCP begins, mostly */

/* Does the frame begin where the held one does, with headers of the same length? */
static __always_inline int colo_whole_fits(struct __sk_buff *skb, struct colo_work *work,
					   struct colo_slot *slot)
{
	struct colo_pkt *pkt = &work->pkt;

	return slot->start == pkt->seq && slot->part == pkt->seq && slot->tcp_off == pkt->l4 &&
	       slot->l3_off == pkt->l3 && slot->data_off == pkt->payload &&
	       skb->gso_size <= slot->bytes && skb->len == pkt->payload + pkt->len;
}

/*
 * Is the checksum still CHECKSUM_PARTIAL? No skb field says so to a BPF program. We detect it:
 * bpf_l4_csum_replace() then leaves the field unchanged. A GSO frame always is CHECKSUM_PARTIAL. A
 * frame whose sum the NIC made (CHECKSUM_COMPLETE) never is, and this function does not touch it.
 * Otherwise the field is left changed: the caller writes another checksum. -1: cannot be read.
 */
static __always_inline int colo_sum_is_due(struct __sk_buff *skb, __u32 sum, __u16 before)
{
	__u16 after;

	if (skb->gso_size)
		return 1;
	if (bpf_csum_update(skb, 0) >= 0)
		return 0;
	if (bpf_l4_csum_replace(skb, sum, 0, 1, 2) || bpf_skb_load_bytes(skb, sum, &after, 2))
		return -1;
	return before == after;
}

/*
 * Turn the checksum of the SVM's header into that of the held header. Ports and sequence number are
 * the same; ACK, window, flags and options may differ. A sum does not depend on the order of 16-bit
 * words (RFC 1071), so the differences can be added up in any order. The kernel leaves a
 * CHECKSUM_PARTIAL field alone. -1: the frame cannot be read.
 */
static __always_inline int colo_whole_sum(struct __sk_buff *skb, struct colo_pkt *pkt,
					  struct colo_frame *frame, __u64 l4, __u64 options)
{
	__u8 was[COLO_TCP_MAX - 20];
	__u16 half[2];
	__u64 sum;
	__u32 ack;

	if (l4 > COLO_HEAD_MAX)
		return -1;
	/* Loads as wide as the last stores: a load that spans two stores waits for both. */
	__builtin_memcpy(&ack, &frame->data[l4 + 8], 4);
	__builtin_memcpy(&half[0], &frame->data[l4 + 12], 2);
	__builtin_memcpy(&half[1], &frame->data[l4 + 14], 2);
	if (!options && ack == bpf_htonl(pkt->ack) &&
	    ((__u32)half[1] << 16 | half[0]) == pkt->control)
		return 0;
	sum = (__u64)(__u32)~bpf_htonl(pkt->ack) + (__u32)~pkt->control + ack + half[0] + half[1];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	if (options) {
		if (colo_outside(options, 4, sizeof(was)) ||
		    bpf_skb_load_bytes(skb, pkt->l4 + 20, was, options))
			return -1;
		sum = (__u32)bpf_csum_diff((__be32 *)was, options & ~3ULL,
					   (__be32 *)&frame->data[l4 + 20], options & ~3ULL, sum);
	}
	return bpf_l4_csum_replace(skb, l4 + 16, 0, sum, 0);
}

/*
 * Write a plain header (no tag, no IP option) in place, up to the checksum. -1: the header does not
 * lie in the skb's head. In words of 8 bytes, but for ACK and window, which were lowered just
 * before: a load that spans two stores waits for both.
 */
static __always_inline int colo_whole_put(struct __sk_buff *skb, struct colo_frame *frame)
{
	__u8 *to = (void *)(long)skb->data, *from = frame->data;
	int i;

	if (to + COLO_PLAIN_L4 + 16 > (__u8 *)(long)skb->data_end)
		return -1;
#pragma unroll
	for (i = 0; i < 40; i += 8)
		*(__u64 *)(to + i) = *(__u64 *)(from + i);
	*(__u16 *)(to + 40) = *(__u16 *)(from + 40);
	*(__u32 *)(to + 42) = *(__u32 *)(from + 42);
	*(__u16 *)(to + 46) = *(__u16 *)(from + 46);
	*(__u16 *)(to + 48) = *(__u16 *)(from + 48);
	return 0;
}

/* Write any other header, up to the checksum. */
static __always_inline int colo_whole_store(struct __sk_buff *skb, struct colo_work *work,
					    struct colo_frame *frame, __u64 l4)
{
	__u64 from = 0, len;

	/* IPv4's own checksum keeps its header's sum what it is. IPv6 has none. */
	if (work->pkt.ethertype == ETH_P_IPV6) {
		if (bpf_skb_store_bytes(skb, 0, frame->data, l4, BPF_F_RECOMPUTE_CSUM))
			return -1;
		from = l4;
	}
	len = l4 + 16 - from;
	if (colo_above(from, COLO_HEAD_MAX) || colo_outside(len, 16, COLO_HEAD_MAX + 16))
		return -1;
	return bpf_skb_store_bytes(skb, from, &frame->data[from], len, 0);
}

/*
 * Give the SVM's frame the header of a held frame that has as much payload. The urgent pointer is
 * not written: without URG it means nothing. The skb keeps its hash: the connection is the same.
 */
static __always_inline int colo_whole_same(struct __sk_buff *skb, struct colo_work *work,
					   struct colo_slot *slot, struct colo_frame *frame)
{
	__u64 l4 = slot->tcp_off, options = slot->data_off - slot->tcp_off - 20;

	if (colo_outside(l4, ETH_HLEN, COLO_HEAD_MAX) || frame->data[l4 + 13] & COLO_TCP_URG)
		return -1;
	if (colo_whole_sum(skb, &work->pkt, frame, l4, options))
		return -1;
	if ((l4 != COLO_PLAIN_L4 || colo_whole_put(skb, frame)) &&
	    colo_whole_store(skb, work, frame, l4))
		return -1;
	if (!options)
		return 0;
	l4 += 20;
	if (colo_above(l4, COLO_HEAD_MAX) || colo_outside(options, 4, COLO_TCP_MAX - 20))
		return -1;
	return bpf_skb_store_bytes(skb, l4, &frame->data[l4], options, 0);
}

/*
 * Give a CHECKSUM_PARTIAL frame of the SVM the header of the first frame of a row. The header in
 * the store stays as it was.
 */
static __always_inline int colo_whole_dress(struct __sk_buff *skb, struct colo_work *work,
					    struct colo_slot *slot, struct colo_frame *frame)
{
	__u64 l3 = slot->l3_off, l4 = slot->tcp_off, head = slot->data_off;
	__u32 len = work->pkt.payload - work->pkt.l4 + work->pkt.len;
	struct colo_length was, now;
	int six, result;

	if (colo_above(l3, COLO_HEAD_MAX) || colo_above(l4, COLO_HEAD_MAX) ||
	    colo_outside(head, ETH_HLEN, COLO_HEAD_MAX))
		return -1;
	six = frame->data[l3] >> 4 == 6;
	colo_length_put(frame, &was, l3, l4, six, 1);
	now = was;
	now.flags |= work->pkt.flags & COLO_TCP_PSH;
	colo_length_set(&now, bpf_htons(skb->len - slot->l3_off - (six ? 40 : 0)));
	colo_length_put(frame, &now, l3, l4, six, 0);
	now.tcp_sum = ~colo_sum_fold(colo_pseudo_sum(frame, l3, six, len, IPPROTO_TCP));
	colo_length_put(frame, &now, l3, l4, six, 0);
	result = bpf_skb_store_bytes(skb, 0, frame->data, head,
				     BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
	colo_length_put(frame, &was, l3, l4, six, 0);
	return result;
}

/* A claimed frame at its flow's head leaves the store: the SVM's frame stands for it. */
static __always_inline void colo_whole_out(struct colo_flow *flow, struct colo_slot *slot)
{
	colo_flow_pop(flow, slot);
	colo_slot_free(slot);
	colo_live_add(COLO_LIVE_CARRIED, 1);
}

/* The row leaves the store; its first frame is claimed. */
static __always_inline void colo_whole_drop(struct colo_flow *flow, struct colo_work *work)
{
	struct colo_slot *slot;
	__u32 ix;
	int i;

#pragma nounroll
	for (i = 0; i < COLO_CUTS; i++) {
		COLO_FORGET();
		ix = flow->head - 1;
		slot = colo_hold.lookup(&ix);
		if (!slot || (i && (slot->epoch != work->now.epoch ||
				    slot->kind != COLO_SLOT_STREAM ||
				    COLO_AFTER(slot->end, work->end) || colo_slot_claim(slot))))
			break;
		colo_whole_out(flow, slot);
	}
}

/* May nothing of the flow from slot ref - 1 on leave now? Then no carrier is needed. */
static __always_inline int colo_whole_last(struct colo_flow *flow, struct colo_work *work,
					   __u32 ref)
{
	struct colo_slot *slot;
	__u32 ix = ref - 1;

	if (flow->ack_slot || work->plan.part)
		return 0;
	slot = colo_hold.lookup(&ix);
	return !slot || COLO_AFTER(slot->end, flow->verified);
}

/*
 * Under the flow's lock: give the SVM's frame the header of the row at its flow's head, and claim
 * the row's first frame. -1: it does not fit; then the frames of the row leave themselves.
 */
static __always_inline int colo_whole_make(struct __sk_buff *skb, struct colo_flow *flow,
					   struct colo_work *work, struct colo_slot *slot, __u32 ix)
{
	struct colo_frame *frame = colo_frames.lookup(&ix);
	int same = slot->end == work->end, failed;

	if (!frame || flow->epoch != work->now.epoch || slot->epoch != flow->epoch ||
	    !(flow->flags & COLO_F_ANCHORED) || flow->flags & (COLO_F_LOST | COLO_F_BAD) ||
	    COLO_AFTER(work->end, flow->verified) || !colo_whole_fits(skb, work, slot))
		return -1;
	/* Only a CHECKSUM_PARTIAL frame can stand for a row: its sum is made later. */
	if ((!same && colo_sum_is_due(skb, work->pkt.sum, work->pkt.check) != 1) ||
	    colo_slot_claim(slot))
		return -1;
	colo_slot_lower(slot, frame, colo_told(slot->ack, flow->floor),
			colo_flow_edge(flow, slot->edge));
	failed = same ? colo_whole_same(skb, work, slot, frame) :
			colo_whole_dress(skb, work, slot, frame);
	if (failed) {
		colo_slot_unclaim(slot);
		return -1;
	}
	work->plan.leaves = 1;
	colo_count(COLO_PROG_DRAIN, COLO_V_CARRY, COLO_R_WHOLE, skb->len);
	return 0;
}

/* For a row of any length. A frame lost after this is sent again by its VM, as any other. */
static __always_inline void colo_whole_take(struct __sk_buff *skb, struct colo_flow *flow,
					    struct colo_work *work)
{
	struct colo_slot *slot;
	__u32 ix;

	if (colo_flow_lock(flow, &work->flow, COLO_LOCK_AGAIN))
		return;
	ix = flow->head - 1;
	slot = colo_hold.lookup(&ix);
	if (slot && !colo_whole_make(skb, flow, work, slot, ix)) {
		colo_whole_drop(flow, work);
		work->plan.done = colo_whole_last(flow, work, flow->head);
	}
	colo_unlock(&flow->lock);
}

/*
 * Under the flow's lock. Nearly always the row is one frame, and nothing else of the flow may
 * leave. Then no carrier is needed, and colo_drain need not be called.
 */
static __always_inline void colo_whole_alone(struct __sk_buff *skb, struct colo_flow *flow,
					     struct colo_work *work)
{
	__u32 ix = flow->head - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);

	if (!slot || slot->end != work->end || flow->emitter || flow->more ||
	    !colo_whole_last(flow, work, slot->next) ||
	    colo_whole_make(skb, flow, work, slot, ix))
		return;
	colo_whole_out(flow, slot);
	work->plan.whole = 0;
	work->plan.drain = 0;
}

/* Send the substituted frame now, because others follow. */
static __always_inline void colo_whole_send(struct __sk_buff *skb, struct colo_config *conf,
					    struct colo_work *work)
{
	work->plan.leaves = 0;
	colo_send(skb, conf, work->pkt.nic);
}

/* The UDP checksum was not compared: write the PVM's, or the pseudo-header's if PARTIAL. */
static __always_inline int colo_whole_udp_sum(struct __sk_buff *skb, struct colo_pkt *pkt,
					      struct colo_frame *frame)
{
	int due = colo_sum_is_due(skb, pkt->l4 + 6, pkt->check);
	int six = pkt->ethertype == ETH_P_IPV6;
	__u64 l3 = pkt->l3, at = pkt->l4 + 6;
	__u16 sum;

	if (due < 0 || colo_above(l3, COLO_HEAD_MAX) || colo_above(at, COLO_HEAD_MAX))
		return -1;
	__builtin_memcpy(&sum, &frame->data[at], 2);
	if (due)
		sum = ~colo_sum_fold(colo_pseudo_sum(frame, l3, six, pkt->end - pkt->l4,
						     IPPROTO_UDP));
	return bpf_skb_store_bytes(skb, at, &sum, 2, BPF_F_RECOMPUTE_CSUM);
}

/* Substitute a datagram, equal behind its network header. -1: the held copy leaves itself. */
static __always_inline int colo_whole_dgram(struct __sk_buff *skb, struct colo_work *work,
					    struct colo_slot *slot, __u32 ix)
{
	struct colo_frame *frame = colo_frames.lookup(&ix);
	__u64 head = work->pkt.l4;

	if (!frame || skb->vlan_present || slot->len != skb->len ||
	    work->pkt.end != skb->len || colo_is_tcp(&work->pkt))
		return -1;
	if (colo_outside(head, ETH_HLEN, COLO_HEAD_MAX))
		return -1;
	if (colo_is_ip(&work->pkt) && work->pkt.proto == IPPROTO_UDP && !work->pkt.fragment &&
	    colo_whole_udp_sum(skb, &work->pkt, frame))
		return -1;
	return bpf_skb_store_bytes(skb, 0, frame->data, head,
				   BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
}

#endif /* COLO_SUBSTITUTE_H */
