/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hold store. TC cannot park an skb, so a PVM frame that is not verified yet is
 * copied here and dropped; the skb that later completes it carries the copy out.
 *
 * Slots are handed out in ring order, as far as they are free. The last part of the store comes
 * first: mostly few frames are held, and memory that was used a moment ago is still in the cache.
 * When that part is full the whole store is used. A walk over a part from its head meets most held
 * frames oldest first. A slot is freed only when the tap has accepted its frame.
 */
#ifndef COLO_HOLD_H
#define COLO_HOLD_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>

#include "colo_abi.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_verifier.h"

/* The control plane maps it, and finds the oldest frame without a call to the kernel. */
BPF_TABLE_PINNED("array", __u32, struct colo_slot, colo_hold, COLO_HOLD_SLOTS,
		 COLO_PIN "/colo_hold", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", __u32, struct colo_frame, colo_frames, COLO_HOLD_SLOTS,
		 COLO_PIN "/colo_frames");

#define COLO_ALLOC_TRIES	16	/* places of the ring that are tried for a free slot */
#define COLO_ROOM		16384	/* bytes of window with which any client goes on */
#define COLO_HEAD_MAX		256	/* headers of a held frame, a power of two */
#define COLO_SUM_BYTES		508	/* a multiple of 4 below 512, an older kernel's limit */
#define COLO_SUMS		((COLO_FRAME_MAX - COLO_HEAD_MAX) / COLO_SUM_BYTES)
#define COLO_DATA_MAX		(COLO_SUMS * COLO_SUM_BYTES - 64)	/* behind the headers */

/* The n-th slot of a part, round and round. */
static __always_inline __u32 colo_hold_place(struct colo_config *conf, __u32 part, __u32 n)
{
	return (part * COLO_HOLD_PART + (n & (COLO_HOLD_PART - 1))) & (conf->hold_slots - 1);
}

/* Return slot + 1, or 0 when the store is full. */
static __always_inline __u32 colo_hold_alloc(struct colo_config *conf)
{
	__u64 *head = colo_live_word(COLO_LIVE_HOLD_HEAD);
	struct colo_slot *slot;
	__u64 first;
	__u32 ix;
	int i;

	if (!head)
		return 0;
	first = __sync_fetch_and_add(head, 1);
	ix = colo_hold_place(conf, conf->hold_slots / COLO_HOLD_PART - 1, first);
	for (i = 0; i <= COLO_ALLOC_TRIES; i++) {
		slot = colo_hold.lookup(&ix);
		if (!slot)
			return 0;
		if (!__sync_val_compare_and_swap(&slot->state, COLO_SLOT_FREE, COLO_SLOT_FILLING))
			return ix + 1;
		/* Frames of one waiting connection fill a stretch of the ring: skip it. */
		ix = (first + i * (conf->hold_slots / COLO_ALLOC_TRIES)) & (conf->hold_slots - 1);
	}
	return 0;
}

/* Claimed by exactly one of carrier and flush; -1: somebody else has it. */
static __always_inline int colo_slot_claim(struct colo_slot *slot)
{
	return __sync_val_compare_and_swap(&slot->state, COLO_SLOT_HELD, COLO_SLOT_LEAVING) ==
	       COLO_SLOT_HELD ? 0 : -1;
}

/* A claimed frame stays after all. */
static __always_inline void colo_slot_unclaim(struct colo_slot *slot)
{
	__sync_val_compare_and_swap(&slot->state, COLO_SLOT_LEAVING, COLO_SLOT_HELD);
}

static __always_inline void colo_slot_free(struct colo_slot *slot)
{
	__u32 said = slot->kind == COLO_SLOT_SAID;

	slot->kind = 0;
	if (__sync_val_compare_and_swap(&slot->state, COLO_SLOT_LEAVING, COLO_SLOT_FREE) ==
	    COLO_SLOT_LEAVING && !said)
		colo_live_add(COLO_LIVE_HELD, -1);
}

/* The frame stays in the store, but in no flow's list: the next flush finds it. */
static __always_inline void colo_slot_orphan(struct colo_slot *slot)
{
	slot->kind = COLO_SLOT_DGRAM;
	colo_slot_unclaim(slot);
}

/* Take the first of its flow's held frames out of the list, under the flow's lock. */
static __always_inline void colo_flow_pop(struct colo_flow *flow, struct colo_slot *slot)
{
	if (flow->unmet == flow->head)
		flow->unmet = slot->next;
	flow->head = slot->next;
	if (!flow->head)
		flow->tail = 0;
	flow->held--;
}

/*
 * Drop the flow's first held frame from the store. If its bytes come again they are held anew. -1:
 * another CPU is just sending it.
 */
static __always_inline int colo_flow_forget(struct colo_flow *flow, struct colo_slot *slot)
{
	if (colo_slot_claim(slot))
		return -1;
	flow->flags |= COLO_F_LOST;
	colo_flow_pop(flow, slot);
	colo_slot_free(slot);
	return 0;
}

/* Sum of slot memory at `off`, which lies in the head. */
static __always_inline __u32 colo_frame_sum(struct colo_frame *frame, __u64 off, __u64 len,
					  __u32 sum)
{
	__u64 part;
	int i;

	COLO_OPAQUE(off);
	off &= COLO_HEAD_MAX - 1;
#pragma unroll
	for (i = 0; i < COLO_SUMS; i++) {
		part = (colo_min(len, COLO_SUM_BYTES) + 3) & ~3ULL;
		len -= colo_min(len, COLO_SUM_BYTES);
		COLO_OPAQUE(part);
		part &= 511;
		sum = bpf_csum_diff(0, 0, (__be32 *)&frame->data[off + i * COLO_SUM_BYTES], part,
				    sum);
	}
	return sum;
}

static __always_inline __u16 colo_sum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Sum of the pseudo-header of a stored frame with `len` bytes from its transport header on. */
static __always_inline __u32 colo_pseudo_sum(struct colo_frame *frame, __u64 l3, int six,
					     __u32 len, __u32 proto)
{
	__u32 sum = bpf_htonl(len + proto);

	if (six)
		return bpf_csum_diff(0, 0, (__be32 *)&frame->data[l3 + 8], 32, sum);
	return bpf_csum_diff(0, 0, (__be32 *)&frame->data[l3 + 12], 8, sum);
}

/* The transport checksum of a stored frame, whose checksum field is zero; `len` from `l4` on. */
static __always_inline __u16 colo_l4_sum(struct colo_frame *frame, __u64 l3, __u64 l4, int six,
					 __u32 len, __u32 proto)
{
	__u32 sum = colo_pseudo_sum(frame, l3, six, len, proto);

	return colo_sum_fold(colo_frame_sum(frame, l4, len, sum));
}

/* The header of a frame copied to a slot: `tag` bytes longer where a VLAN tag was written back. */
struct colo_copy {
	__u32 head;		/* bytes before the data */
	__u32 from;		/* offset of the data in the skb */
	__u32 len;		/* of the data */
	__u32 tag;
};

/*
 * Copy header and data into the slot. A VLAN tag sits in skb->vlan_tci at clsact, not in the bytes:
 * it is written back, so that the frame can leave as it came. Four zero bytes follow, for the
 * checksum.
 */
static __always_inline int colo_hold_copy(struct __sk_buff *skb, struct colo_frame *frame,
					  struct colo_copy *copy)
{
	__u64 head = copy->head, len = copy->len;
	int result;

	copy->tag = 0;
	if (colo_outside(head, ETH_HLEN, COLO_HEAD_MAX - 8))
		return -1;
	if (!skb->vlan_present && copy->from == head) {		/* all in one: nearly always */
		len += head;
		if (copy->len > COLO_DATA_MAX ||
		    colo_outside(len, ETH_HLEN, COLO_FRAME_MAX - 4))
			return -1;
		result = bpf_skb_load_bytes(skb, 0, frame->data, len);
		__builtin_memset(&frame->data[len], 0, 4);
		return result;
	}
	if (bpf_skb_load_bytes(skb, 0, frame->data, ETH_HLEN - 2))
		return -1;
	if (skb->vlan_present) {
		__u16 tci = bpf_htons(skb->vlan_tci);
		__u16 proto = skb->vlan_proto;

		copy->tag = 4;
		__builtin_memcpy(&frame->data[12], &proto, 2);
		__builtin_memcpy(&frame->data[14], &tci, 2);
	}
	head -= ETH_HLEN - 2;
	if (colo_outside(head, 2, COLO_HEAD_MAX))
		return -1;
	if (bpf_skb_load_bytes(skb, ETH_HLEN - 2, &frame->data[12 + (copy->tag & 4)], head))
		return -1;
	head = copy->head + copy->tag;
	if (colo_above(head, COLO_HEAD_MAX))
		return -1;
	if (len && (colo_outside(len, 1, COLO_DATA_MAX) ||
		    bpf_skb_load_bytes(skb, copy->from, &frame->data[head], len)))
		return -1;
	head += len;
	if (colo_above(head, COLO_FRAME_MAX - 4))
		return -1;
	__builtin_memset(&frame->data[head], 0, 4);
	return 0;
}

/*
 * A frame from an offloading tap has only the sum of its pseudo-header as checksum, and a BPF
 * program cannot see that. So the checksum of TCP and UDP is always made anew. A UDP checksum of
 * zero over IPv4 says that there is none.
 */
static __always_inline void colo_hold_sum(struct colo_frame *frame, struct colo_pkt *pkt,
					  __u32 tag, __u32 len, __u32 proto)
{
	__u64 l3 = pkt->l3 + tag, l4 = pkt->l4 + tag;
	__u64 at = l4 + (proto == IPPROTO_TCP ? 16 : 6);
	__u16 folded = 0;

	if (colo_above(at, COLO_HEAD_MAX) || colo_above(l3, COLO_HEAD_MAX))
		return;
	__builtin_memcpy(&folded, &frame->data[at], 2);
	if (!folded && proto == IPPROTO_UDP)
		return;
	folded = 0;
	__builtin_memcpy(&frame->data[at], &folded, 2);
	folded = colo_l4_sum(frame, l3, l4, pkt->ethertype == ETH_P_IPV6, len, proto);
	if (!folded && proto == IPPROTO_UDP)
		folded = 0xffff;
	__builtin_memcpy(&frame->data[at], &folded, 2);
}

/*
 * Make the TCP checksum of a held segment that leaves now, with `bytes` of its payload. Not before:
 * most held segments never leave, because the SVM's frame leaves in their place.
 */
static __always_inline void colo_slot_sum(struct colo_slot *slot, struct colo_frame *frame,
					  __u32 bytes)
{
	__u64 l3 = slot->l3_off, l4 = slot->tcp_off;
	__u16 sum = 0;
	int six;

	if (colo_above(l3, COLO_HEAD_MAX) || colo_above(l4, COLO_HEAD_MAX))
		return;
	six = frame->data[l3] >> 4 == 6;
	__builtin_memcpy(&frame->data[l4 + 16], &sum, 2);
	sum = colo_l4_sum(frame, l3, l4, six, slot->data_off - slot->tcp_off + bytes, IPPROTO_TCP);
	__builtin_memcpy(&frame->data[l4 + 16], &sum, 2);
}

/* Length and identification of a cut's IP header; `n` cuts came before it in the GSO frame. */
static __always_inline void colo_cut_ip(struct colo_frame *frame, struct colo_pkt *pkt, __u64 l3,
					__u32 len, __u32 n)
{
	__u64 hlen = pkt->l4 - pkt->l3;
	__u16 word;

	if (colo_above(l3, COLO_HEAD_MAX))
		return;
	if (pkt->ethertype == ETH_P_IPV6) {
		word = bpf_htons(hlen + len - 40);
		__builtin_memcpy(&frame->data[l3 + 4], &word, 2);
		return;
	}
	word = bpf_htons(hlen + len);
	__builtin_memcpy(&frame->data[l3 + 2], &word, 2);
	__builtin_memcpy(&word, &frame->data[l3 + 4], 2);
	word = bpf_htons(bpf_ntohs(word) + n);
	__builtin_memcpy(&frame->data[l3 + 4], &word, 2);
	word = 0;
	__builtin_memcpy(&frame->data[l3 + 10], &word, 2);
	if (colo_above(hlen, 60))
		return;
	word = colo_sum_fold(bpf_csum_diff(0, 0, (__be32 *)&frame->data[l3], hlen & ~3ULL, 0));
	__builtin_memcpy(&frame->data[l3 + 10], &word, 2);
}

/* Sequence number and flags of a cut: FIN and PSH go with the last, CWR with the first. */
static __always_inline void colo_cut_tcp(struct colo_frame *frame, __u64 l4, __u32 seq, int first,
					 int last)
{
	if (colo_above(l4, COLO_HEAD_MAX))
		return;
	seq = bpf_htonl(seq);
	__builtin_memcpy(&frame->data[l4 + 4], &seq, 4);
	if (!last)
		frame->data[l4 + 13] &= ~(COLO_TCP_FIN | COLO_TCP_PSH);
	if (!first)
		frame->data[l4 + 13] &= ~COLO_TCP_CWR;
}

/* Returns how many more slots are in use. */
static __always_inline __u32 colo_hold_publish(struct colo_slot *slot, __u64 epoch,
						__u64 at_ns)
{
	slot->epoch = epoch;
	slot->at_ns = at_ns;
	if (__sync_val_compare_and_swap(&slot->state, COLO_SLOT_FILLING, COLO_SLOT_HELD) ==
	    COLO_SLOT_FILLING)
		return 1;
	/* The slot held an older ACK, and was counted then. */
	__sync_val_compare_and_swap(&slot->state, COLO_SLOT_LEAVING, COLO_SLOT_HELD);
	return 0;
}

/* Ones' complement update of the 16-bit checksum at `sum` for one 32-bit word. */
static __always_inline void colo_sum_replace(__u8 *sum, __u32 from, __u32 to)
{
	__u16 old, new;
	__s64 diff;

	__builtin_memcpy(&old, sum, 2);
	diff = bpf_csum_diff(&from, 4, &to, 4, (__u16)~old);
	diff = (diff & 0xffff) + ((diff >> 16) & 0xffff);
	diff = (diff & 0xffff) + ((diff >> 16) & 0xffff);
	new = ~(__u16)diff;
	__builtin_memcpy(sum, &new, 2);
}

/* I2: what leaves never acknowledges more than `floor`. */
static __always_inline __u32 colo_told(__u32 ack, __u32 floor)
{
	return COLO_AFTER(ack, floor) ? floor : ack;
}

/* The window ends where the smaller of both sides' does: a lowered ACK makes it larger. */
static __always_inline __u32 colo_window(__u32 ack, __u32 edge, __u32 scale, __u16 window)
{
	__u32 room;

	if (scale == COLO_NO_SCALE)
		return window;
	room = (__s32)(edge - ack) > 0 ? (edge - ack) >> (scale & 15) : 0;
	return room > 65535 ? 65535 : room;
}

/*
 * Does the client have to be told of a wider window later? It was told of one that ends at `told`,
 * because the SVM's is no wider. With so little room the client may stop sending (RFC 9293,
 * 3.8.6.2.1), and the PVM, which meant more, does not announce its window again.
 */
static __always_inline int colo_window_owed(__u32 ack, __u32 told, __u32 meant)
{
	__u32 room = told - ack;

	return (__s32)room < COLO_ROOM && (__s32)(meant - told) > 0 &&
	       (__s32)(meant - told) >= (__s32)room;
}

/* The checksum is made when the frame leaves (colo_slot_sum). */
static __always_inline void colo_slot_lower(struct colo_slot *slot, struct colo_frame *frame,
					    __u32 ack, __u32 edge)
{
	__u64 off = slot->tcp_off;
	__u32 told = bpf_htonl(ack);
	__u16 window;

	if (!off)
		return;
	if (colo_above(off, COLO_FRAME_MAX - 20))
		return;
	__builtin_memcpy(&frame->data[off + 8], &told, 4);
	__builtin_memcpy(&window, &frame->data[off + 14], 2);
	window = bpf_htons(colo_window(ack, edge, slot->scale, bpf_ntohs(window)));
	__builtin_memcpy(&frame->data[off + 14], &window, 2);
}

/* What of a frame's headers says how long it is. */
struct colo_length {
	__u16 ip_len;
	__u16 ip_sum;
	__u16 tcp_sum;
	__u8 flags;
};

/* Another length, and IPv4's own checksum for it. */
static __always_inline void colo_length_set(struct colo_length *as, __u16 ip_len)
{
	if (as->ip_len != ip_len)
		colo_sum_replace((__u8 *)&as->ip_sum, as->ip_len, ip_len);
	as->ip_len = ip_len;
}

/* From a frame, or into it. Neither `l3` nor `l4` is above COLO_HEAD_MAX. */
static __always_inline void colo_length_put(struct colo_frame *frame, struct colo_length *as,
					    __u64 l3, __u64 l4, int six, int load)
{
	if (load) {
		__builtin_memcpy(&as->ip_len, &frame->data[l3 + (six ? 4 : 2)], 2);
		__builtin_memcpy(&as->ip_sum, &frame->data[l3 + 10], 2);
		__builtin_memcpy(&as->tcp_sum, &frame->data[l4 + 16], 2);
		as->flags = frame->data[l4 + 13];
		return;
	}
	__builtin_memcpy(&frame->data[l3 + (six ? 4 : 2)], &as->ip_len, 2);
	if (!six)
		__builtin_memcpy(&frame->data[l3 + 10], &as->ip_sum, 2);
	__builtin_memcpy(&frame->data[l4 + 16], &as->tcp_sum, 2);
	frame->data[l4 + 13] = as->flags;
}

/*
 * Turn a stored segment of the PVM into the pure ACK that follows it: its headers, with the
 * sequence number after its payload. -1: the slot has no TCP header.
 */
static __always_inline int colo_ack_make(struct colo_slot *slot, struct colo_frame *frame,
					 __u32 seq)
{
	__u64 l3 = slot->l3_off, l4 = slot->tcp_off;
	__u32 next = bpf_htonl(seq);
	struct colo_length as;
	int six;

	if (colo_above(l3, COLO_HEAD_MAX) || colo_outside(l4, 1, COLO_HEAD_MAX))
		return -1;
	six = frame->data[l3] >> 4 == 6;
	__builtin_memcpy(&frame->data[l4 + 4], &next, 4);
	colo_length_put(frame, &as, l3, l4, six, 1);
	as.flags &= ~(COLO_TCP_PSH | COLO_TCP_CWR);
	colo_length_set(&as, bpf_htons(slot->data_off - slot->l3_off - (six ? 40 : 0)));
	colo_length_put(frame, &as, l3, l4, six, 0);
	slot->len = slot->data_off;
	slot->bytes = 0;
	slot->kind = COLO_SLOT_ACK;
	return 0;
}

/* Was the client told less than the PVM meant? It has to be told the rest later. */
static __always_inline int colo_ack_owed(struct colo_slot *slot, __u32 told, __u32 edge)
{
	return COLO_AFTER(slot->ack, told) || colo_window_owed(told, edge, slot->edge);
}

#endif /* COLO_HOLD_H */
