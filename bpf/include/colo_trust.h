/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a guest or a client may not say, whoever it is: that a frame is a plane's own, and, of a
 * guest, that another machine has sent it.
 */
#ifndef COLO_TRUST_H
#define COLO_TRUST_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>

#include "colo_abi.h"
#include "colo_maps.h"
#include "colo_packet.h"

/* The MAC address that a NIC's guest speaks with, as it stands in the frame; 0: with any. */
BPF_TABLE_PINNED("array", __u32, __u64, colo_macs, COLO_NICS, COLO_PIN "/colo_macs");

/*
 * Behind its tags the frame says that it is a beacon, or a farewell: on the link it would be one.
 * Where the outer of two tags stands in the bytes, the other end sees one tag further than we do.
 */
static __always_inline int colo_poses(struct __sk_buff *skb, struct colo_pkt *pkt)
{
	int further = pkt->ethertype == ETH_P_8021Q || pkt->ethertype == ETH_P_8021AD;

	return pkt->ethertype == COLO_BEACON_ETHERTYPE || pkt->ethertype == COLO_LEAVE_ETHERTYPE ||
	       (further && !skb->vlan_present);
}

/* The frame of the hook's guest has another one's address. */
static __always_inline int colo_mac_wrong(struct __sk_buff *skb, __u32 nic)
{
	__u64 *own = colo_macs.lookup(&nic), mac = 0;

	if (!own || !*own)
		return 0;
	return bpf_skb_load_bytes(skb, ETH_ALEN, &mac, ETH_ALEN) || mac != *own;
}

#endif /* COLO_TRUST_H */
