/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Room in the flow table. Nothing is evicted to make some: entries leave when their connection
 * has ended, or was not heard of for so long that losing it is bearable (its next frame waits for a
 * checkpoint; nothing is released for it).
 *
 * A hash map cannot be walked from here, so each entry has a place in colo_places, drawn at
 * random, twice as many as there may be entries. A new connection looks at a few places for a free
 * one, and takes out what has ended there: so the table clears itself, with no daemon. The
 * daemon sweeps all places in turn, by running colo_age.
 */
#ifndef COLO_TABLE_H
#define COLO_TABLE_H

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_hold.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"

#define COLO_PLACES		(2 * COLO_FLOWS)
#define COLO_PLACE_LOOKS	8	/* places a new connection looks at, for what has ended */
#define COLO_PLACE_TRIES	32	/* until one is free: half are, even in a full table */
#define COLO_PLACE_NONE		COLO_PLACES
#define COLO_ENDED_NS		60000000000ULL	/* twice the time a late segment may live */
#define COLO_SOON_NS		4000000000ULL	/* a lost answer to a FIN was sent again by then */
#define COLO_IDLE_NS		3600000000000ULL
#define COLO_CROWDED		(COLO_FLOWS / 4 * 3)	/* from here on little is waited for */

BPF_TABLE_PINNED("array", __u32, struct colo_flow_key, colo_places, COLO_PLACES,
		 COLO_PIN "/colo_places");
BPF_PERCPU_ARRAY(colo_blank, struct colo_flow, 1);	/* too large for the stack */

/*
 * Has the connection ended? By TCP state and idle time. A client that never acknowledged anything
 * has no connection yet. In a crowded table entries go sooner: without a free one nobody can
 * connect.
 */
static __always_inline int colo_flow_ended(struct colo_flow *flow, __u64 now)
{
	__u64 *used = colo_live_word(COLO_LIVE_FLOWS);
	int crowded = used && *used >= COLO_CROWDED;
	__s64 idle = now - flow->seen_ns;

	if (flow->held || flow->ack_slot)
		return 0;
	if (flow->flags & (COLO_F_PVM_FIN | COLO_F_RESET) || !flow->c_known)
		return idle >= (__s64)(crowded ? COLO_SOON_NS : COLO_ENDED_NS);
	return idle >= (__s64)(crowded ? COLO_ENDED_NS : COLO_IDLE_NS);
}

/* Look at a place: 1 if it is free, or has become so. */
static __always_inline int colo_place_look(__u32 ix, __u64 now)
{
	struct colo_flow_key *place = colo_places.lookup(&ix), key;
	struct colo_flow *flow;

	if (!place)
		return 0;
	key = *place;	/* another CPU may draw the same place */
	flow = colo_flows.lookup(&key);
	if (!flow)
		return 1;
	if (!colo_flow_ended(flow, now) || colo_flow_lock(flow, &key, 1))
		return 0;
	/* It stays locked: another CPU that has a pointer to it gives up. */
	if (!colo_flows.delete(&key))
		colo_live_add(COLO_LIVE_FLOWS, -1);
	colo_count(COLO_PROG_AGE, COLO_V_DROP, COLO_R_ENDED, 0);
	return 1;
}

/* An entry for a connection that has none; 0: no room. */
static __always_inline struct colo_flow *colo_flow_make(struct colo_flow_key *key)
{
	__u32 zero = 0, ix, place = COLO_PLACE_NONE;
	__u64 now = bpf_ktime_get_boot_ns();
	struct colo_flow *blank;
	int i;

#pragma nounroll
	for (i = 0; i < COLO_PLACE_TRIES; i++) {
		if (i >= COLO_PLACE_LOOKS && place != COLO_PLACE_NONE)
			break;
		ix = bpf_get_prandom_u32() % COLO_PLACES;
		if (colo_place_look(ix, now))
			place = ix;
	}
	blank = colo_blank.lookup(&zero);
	if (place == COLO_PLACE_NONE || !blank)
		return 0;
	blank->owner = colo_flow_owner(key);
	blank->seen_ns = now;
	if (!colo_flows.insert(key, blank)) {
		colo_places.update(&place, key);
		colo_live_add(COLO_LIVE_FLOWS, 1);
	}
	return colo_flows.lookup(key);
}

/*
 * A client waits for nothing after its connection was reset, by the client or by both VMs. The
 * slower VM may see the client's reset before it closes the connection itself. Then that VM never
 * sends its FIN, and the PVM's FIN would be held until a checkpoint. So held frames of such a
 * connection are dropped. Later frames of the PVM are dropped, too, unless they are verified.
 *
 * Dropping never releases. If the client is there after all, the VM sends the bytes again, as after
 * a loss, and they are held until a checkpoint. The client's next segment ends this state. Only a
 * reset at the byte that the PVM expects next counts: it ends the connection on the PVM, too (RFC
 * 5961, 3.2), and a forged reset has to know that number.
 */

#define COLO_GONE_MAX	16	/* held frames that one reset drops; others wait for a checkpoint */

/* Drop the first held frame of the flow. -1: another CPU is just sending it. */
static __always_inline int colo_gone_drop(struct colo_flow *flow, struct colo_slot *slot,
					  __u32 prog)
{
	__u32 len = slot->len;

	if (colo_flow_forget(flow, slot))
		return -1;
	colo_count(prog, COLO_V_DROP, COLO_R_CLIENT_GONE, len);
	return 0;
}

/* Under the flow's lock; `prog` counts what is dropped. */
static __always_inline void colo_gone_empty(struct colo_flow *flow, __u32 prog)
{
	struct colo_slot *slot;
	__u32 ix;
	int i;

	if (flow->emitter)
		return;
	for (i = 0; i < COLO_GONE_MAX; i++) {
		ix = flow->head - 1;
		slot = colo_hold.lookup(&ix);
		if (!slot || colo_gone_drop(flow, slot, prog))
			break;
	}
	ix = flow->ack_slot - 1;
	slot = colo_hold.lookup(&ix);
	if (!slot || colo_slot_claim(slot))
		return;
	flow->ack_slot = 0;
	colo_count(prog, COLO_V_DROP, COLO_R_CLIENT_GONE, slot->len);
	colo_slot_free(slot);
}

/* The client's segment says whether it is there. */
static __always_inline void colo_gone_track(struct colo_pkt *pkt, struct colo_flow *flow,
					    struct colo_flow_key *key)
{
	if (!(pkt->flags & COLO_TCP_RST)) {
		flow->c_gone = 0;
		return;
	}
	if (!(flow->flags & COLO_F_HAS_ACK) || pkt->seq != flow->p_ack)
		return;
	flow->c_gone = 1;
	if (colo_flow_lock(flow, key, COLO_LOCK_AGAIN))
		return;
	colo_gone_empty(flow, COLO_PROG_MIR_CLI);
	colo_unlock(&flow->lock);
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

#endif /* COLO_TABLE_H */
