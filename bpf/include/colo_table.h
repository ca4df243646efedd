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

#define COLO_PLACES		(2 * COLO_FLOWS)
#define COLO_PLACE_LOOKS	8	/* places a new connection looks at, for what has ended */
#define COLO_PLACE_TRIES	32	/* until one is free: half are, even in a full table */
#define COLO_PLACE_NONE		COLO_PLACES
#define COLO_ENDED_NS		60000000000ULL	/* twice the time a late segment may live */
#define COLO_SOON_NS		4000000000ULL	/* a FIN whose answer was lost has come again by then */
#define COLO_IDLE_NS		3600000000000ULL
#define COLO_CROWDED		(COLO_FLOWS / 4 * 3)	/* from here on little is waited for */

BPF_TABLE_PINNED("array", __u32, struct colo_flow_key, colo_places, COLO_PLACES,
		 COLO_PIN "/colo_places");
BPF_PERCPU_ARRAY(colo_blank, struct colo_flow, 1);	/* too large for the stack */

/*
 * By TCP state and idle time. A client that never acknowledged has no connection yet. In a crowded table
 * less is waited for: who finds no entry cannot connect at all.
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
	/* Locked for good: nobody begins anything with it any more. */
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

#endif /* COLO_TABLE_H */
