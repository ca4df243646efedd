/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A frame of the SVM whose payload is, byte for byte, that of a row of held frames. It leaves
 * itself, under the header the PVM gave the first of them, and the row is dropped: what that costs
 * does not depend on its length. Of two VMs that cut alike, a GSO frame of 64 KB goes to the client
 * as one skb, where the row would go as 45, each with an ACK of its own soon after.
 *
 * The payload has been hashed to its end from where it begins (colo_svm_conclude sets plan.whole),
 * and a held frame ends there with the same digest.
 */
#ifndef COLO_WHOLE_H
#define COLO_WHOLE_H

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
 * Is the checksum left to whoever sends the frame (CHECKSUM_PARTIAL)? No field of the skb tells, but
 * the kernel does not update a checksum that is not made yet. A GSO frame's never is; one the NIC has
 * summed (CHECKSUM_COMPLETE) always is, and must not be touched. The checksum is not put back: whoever
 * asks writes another.
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
 * Make the checksum of the SVM's frame, which is right for it, that of the held header: the ports and the
 * sequence number are the same, ACK, window and flags may be, options may differ. The order of 16-bit words
 * is nothing to a sum (RFC 1071). The kernel leaves alone one that is still to be made. -1: the frame
 * cannot be read.
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
	/* Each as it was written last: a load that spans two stores waits for both. */
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
		COLO_OPAQUE(options);
		if (options < 4 || options > sizeof(was) ||
		    bpf_skb_load_bytes(skb, pkt->l4 + 20, was, options))
			return -1;
		sum = (__u32)bpf_csum_diff((__be32 *)was, options & ~3ULL,
					   (__be32 *)&frame->data[l4 + 20], options & ~3ULL, sum);
	}
	return bpf_l4_csum_replace(skb, l4 + 16, 0, sum, 0);
}

/*
 * A header that begins as nearly all do, with no tag and no IP option, written in place up to the
 * checksum; -1: it does not lie in the skb's head. Words of 8 bytes, but for what was lowered just now: a
 * load that spans two stores waits for both.
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

/* The same for any header. */
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
	COLO_OPAQUE(from);
	COLO_OPAQUE(len);
	if (from > COLO_HEAD_MAX || len < 16 || len > COLO_HEAD_MAX + 16)
		return -1;
	return bpf_skb_store_bytes(skb, from, &frame->data[from], len, 0);
}

/*
 * Give the SVM's frame the header of the held one, which is as long and has as much payload. The urgent
 * pointer stays: without URG it means nothing. So does the skb's hash: both are of one connection.
 */
static __always_inline int colo_whole_same(struct __sk_buff *skb, struct colo_work *work,
					   struct colo_slot *slot, struct colo_frame *frame)
{
	__u64 l4 = slot->tcp_off, options = slot->data_off - slot->tcp_off - 20;

	COLO_OPAQUE(l4);
	if (l4 < ETH_HLEN || l4 > COLO_HEAD_MAX || frame->data[l4 + 13] & COLO_TCP_URG)
		return -1;
	if (colo_whole_sum(skb, &work->pkt, frame, l4, options))
		return -1;
	if ((l4 != COLO_PLAIN_L4 || colo_whole_put(skb, frame)) &&
	    colo_whole_store(skb, work, frame, l4))
		return -1;
	if (!options)
		return 0;
	l4 += 20;
	COLO_OPAQUE(l4);
	COLO_OPAQUE(options);
	if (l4 > COLO_HEAD_MAX || options < 4 || options > COLO_TCP_MAX - 20)
		return -1;
	return bpf_skb_store_bytes(skb, l4, &frame->data[l4], options, 0);
}

/*
 * Give the SVM's frame, whose checksum is still to be made, the header of the first of a row; in the
 * store that stays as it was.
 */
static __always_inline int colo_whole_dress(struct __sk_buff *skb, struct colo_work *work,
					    struct colo_slot *slot, struct colo_frame *frame)
{
	__u64 l3 = slot->l3_off, l4 = slot->tcp_off, head = slot->data_off;
	__u32 len = work->pkt.payload - work->pkt.l4 + work->pkt.len;
	struct colo_length was, now;
	int six, result;

	COLO_OPAQUE(l3);
	COLO_OPAQUE(l4);
	COLO_OPAQUE(head);
	if (l3 > COLO_HEAD_MAX || l4 > COLO_HEAD_MAX || head < ETH_HLEN || head > COLO_HEAD_MAX)
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

/* A claimed frame at its flow's head leaves the store: the SVM's leaves for it. */
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

/* Nothing of the flow from slot ref - 1 on may leave now, so that no carrier is needed. */
static __always_inline int colo_whole_last(struct colo_flow *flow, struct colo_work *work, __u32 ref)
{
	struct colo_slot *slot;
	__u32 ix = ref - 1;

	if (flow->ack_slot || work->plan.part)
		return 0;
	slot = colo_hold.lookup(&ix);
	return !slot || COLO_AFTER(slot->end, flow->verified);
}

/*
 * Under the flow's lock: make the SVM's frame what leaves for the row at its flow's head, if it fits;
 * if it does not (-1), the store will do. The row's first frame is claimed.
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
	/* A longer one has to be cut yet. */
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

/* For a row of any length. If it is lost behind this its VM sends it again, as any other. */
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
 * Under the flow's lock: nearly always the row is one frame, and all that may leave. Then no carrier
 * is needed, nor the look-up and the lock to find that out.
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

/* Send it now: something else is to follow. */
static __always_inline void colo_whole_send(struct __sk_buff *skb, struct colo_conf *conf,
					    struct colo_work *work)
{
	work->plan.leaves = 0;
	colo_send(skb, conf, work->pkt.nic);
}

/* What the SVM says of the checksum was not compared: the PVM's, or that of the pseudo-header. */
static __always_inline int colo_whole_udp_sum(struct __sk_buff *skb, struct colo_pkt *pkt,
					      struct colo_frame *frame)
{
	int due = colo_sum_is_due(skb, pkt->l4 + 6, pkt->check);
	int six = pkt->ethertype == ETH_P_IPV6;
	__u64 l3 = pkt->l3, at = pkt->l4 + 6;
	__u16 sum;

	COLO_OPAQUE(l3);
	COLO_OPAQUE(at);
	if (due < 0 || l3 > COLO_HEAD_MAX || at > COLO_HEAD_MAX)
		return -1;
	__builtin_memcpy(&sum, &frame->data[at], 2);
	if (due)
		sum = ~colo_sum_fold(colo_pseudo_sum(frame, l3, six, pkt->end - pkt->l4,
						     IPPROTO_UDP));
	return bpf_skb_store_bytes(skb, at, &sum, 2, BPF_F_RECOMPUTE_CSUM);
}

/* The same of a datagram: all behind its network header is equal. -1: the store will do. */
static __always_inline int colo_whole_dgram(struct __sk_buff *skb, struct colo_work *work,
					    struct colo_slot *slot, __u32 ix)
{
	struct colo_frame *frame = colo_frames.lookup(&ix);
	__u64 head = work->pkt.l4;

	if (!frame || skb->vlan_present || slot->len != skb->len ||
	    work->pkt.end != skb->len || colo_is_tcp(&work->pkt))
		return -1;
	COLO_OPAQUE(head);
	if (head < ETH_HLEN || head > COLO_HEAD_MAX)
		return -1;
	if (colo_is_ip(&work->pkt) && work->pkt.proto == IPPROTO_UDP && !work->pkt.fragment &&
	    colo_whole_udp_sum(skb, &work->pkt, frame))
		return -1;
	return bpf_skb_store_bytes(skb, 0, frame->data, head,
				   BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
}

#endif /* COLO_WHOLE_H */
