/* SPDX-License-Identifier: GPL-2.0-only */
/* The way of a frame into the host, as if it came from the tap. */
#ifndef COLO_XMIT_H
#define COLO_XMIT_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>

#include "colo_abi.h"
#include "colo_hold.h"
#include "colo_maps.h"
#include "colo_verifier.h"

#define COLO_TAGS	4	/* VLAN tags a carrier may have */

/* Send the skb. It may be used again afterwards. */
static __always_inline int colo_send(struct __sk_buff *skb, struct colo_config *conf, __u32 nic)
{
	skb->mark = COLO_MARK_RELEASED;
	return bpf_clone_redirect(skb, conf->tap_ifindex[nic & (COLO_NICS - 1)], BPF_F_INGRESS);
}

/*
 * Make the skb ready to carry stored frames: after this it has no GSO, and a checksum that is
 * PARTIAL or UNNECESSARY has become NONE. Without it every carried frame leaves with a wrong sum.
 */
static __always_inline int colo_carrier_ready(struct __sk_buff *skb)
{
	int i;

#pragma unroll
	for (i = 0; i < COLO_TAGS; i++)	/* a pop moves the next tag to where the first was */
		if (skb->vlan_present && bpf_skb_vlan_pop(skb))
			return -1;
	if (bpf_skb_change_tail(skb, 256, 0))
		return -1;
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;	/* nobody offloads those */
	return bpf_skb_adjust_room(skb, -64, BPF_ADJ_ROOM_MAC, 0);
}

/* The skb leaves instead, as the last thing its program does: what it returns. */
static __always_inline int colo_send_last(struct __sk_buff *skb, struct colo_config *conf,
					  __u32 nic)
{
	skb->mark = COLO_MARK_RELEASED;
	return bpf_redirect(conf->tap_ifindex[nic & (COLO_NICS - 1)], BPF_F_INGRESS);
}

/* Send the stored frame; of a segment the first `bytes` of payload. */
static __always_inline int colo_emit(struct __sk_buff *skb, struct colo_config *conf, __u32 ix,
				     struct colo_slot *slot, __u32 bytes)
{
	struct colo_frame *frame = colo_frames.lookup(&ix);
	__u64 len = slot->len;

	if (!frame || len < ETH_HLEN)
		return -1;
	if (slot->tcp_off)
		colo_slot_sum(slot, frame, bytes);
	if (colo_outside(len, 1, COLO_FRAME_MAX))
		return -1;
	if (bpf_skb_change_tail(skb, len, 0))
		return -1;
	if (bpf_skb_store_bytes(skb, 0, frame->data, len,
				BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH))
		return -1;
	return colo_send(skb, conf, slot->flow.nic);
}

#endif /* COLO_XMIT_H */
