/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The replay buffer: the last frames of the SVM. The primary's host compares the SVM's frames and
 * drops them. If that host or its VM dies, an answer may be lost that the PVM never gave. The
 * client would wait for the SVM's own retransmission timer, 200 ms at least. So the secondary keeps
 * the last frames, and when its VM serves alone they are sent once more (colo_flush), like a
 * retransmission.
 *
 * They are kept in the first slots of the hold store, as a ring: a secondary uses the store for
 * nothing else. Only frames of the epoch in which it takes over may ever leave.
 *
 * These are not kept: datagrams, which may be lost; SYNs, whose numbers the client may know
 * differently; bare ACKs; resets; and GSO frames: if one is lost, the frame behind it makes the
 * client ask for it.
 */
#ifndef COLO_REPLAY_H
#define COLO_REPLAY_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>

#include "colo_abi.h"
#include "colo_hold.h"
#include "colo_maps.h"
#include "colo_packet.h"

#define COLO_SAID	64	/* slots, a power of two below the least hold store */

static __always_inline int colo_said_wanted(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	if (!colo_is_tcp(pkt) || skb->gso_size || pkt->flags & (COLO_TCP_SYN | COLO_TCP_RST))
		return 0;
	return pkt->len || pkt->flags & COLO_TCP_FIN;
}

/* The slot of the oldest one. */
static __always_inline struct colo_slot *colo_said_slot(__u32 *ix)
{
	__u64 *head = colo_live_word(COLO_LIVE_HOLD_HEAD);
	struct colo_slot *slot;

	if (!head)
		return 0;
	*ix = __sync_fetch_and_add(head, 1) & (COLO_SAID - 1);
	slot = colo_hold.lookup(ix);
	if (!slot)
		return 0;
	if (__sync_val_compare_and_swap(&slot->state, COLO_SLOT_HELD, COLO_SLOT_FILLING) !=
	    COLO_SLOT_HELD &&
	    __sync_val_compare_and_swap(&slot->state, COLO_SLOT_FREE, COLO_SLOT_FILLING) !=
	    COLO_SLOT_FREE)
		return 0;
	return slot;
}

/* Keep a copy of the frame, in the VM's own numbers. */
static __always_inline void colo_said_keep(struct __sk_buff *skb, struct colo_pkt *pkt,
					   __u64 epoch)
{
	struct colo_copy copy = { .head = pkt->l4, .from = pkt->l4 };
	struct colo_frame *frame;
	struct colo_slot *slot;
	__u32 ix = 0;

	if (epoch == COLO_EPOCH_NONE || !colo_said_wanted(skb, pkt))
		return;
	slot = colo_said_slot(&ix);
	if (!slot)
		return;
	frame = colo_frames.lookup(&ix);
	copy.len = skb->len - pkt->l4;
	if (!frame || colo_hold_copy(skb, frame, &copy)) {
		slot->state = COLO_SLOT_FREE;
		return;
	}
	colo_hold_sum(frame, pkt, copy.tag, pkt->end - pkt->l4, IPPROTO_TCP);
	colo_key_from_vm(pkt, &slot->flow);
	slot->kind = COLO_SLOT_SAID;
	slot->len = copy.head + copy.tag + copy.len;
	slot->tcp_off = 0;
	colo_hold_publish(slot, epoch, bpf_ktime_get_boot_ns());
}

#endif /* COLO_REPLAY_H */
