/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An SVM far ahead has more ends than its flow has room for (colo_flow.h). Without the one where a frame of
 * the PVM stops, that frame would wait for the PVM's next, and a PVM that waits for the client to acknowledge
 * it sends none. So all ends beyond the oldest stand in one table for all flows, too. An entry that another
 * has taken the place of is only missed: the flow has some of its own.
 *
 * One word says both whose it is and what the digest was, so it needs no lock. What was said of another
 * connection, in another epoch or about other bytes is not equal, but with a chance of 2^-64.
 */
#ifndef COLO_AHEAD_H
#define COLO_AHEAD_H

#define COLO_AHEAD	65536	/* a power of two: 95 MB of segments of 1448 bytes */

BPF_ARRAY(colo_ahead, __u64, COLO_AHEAD);

struct colo_ahead_place {
	__u64 tag;		/* of that place in the flow's stream, in this epoch */
	__u64 *word;
};

static __always_inline struct colo_ahead_place colo_ahead_at(struct colo_flow *flow, __u32 end)
{
	__u64 stream = colo_mix(flow->owner + flow->gen, flow->epoch);
	__u32 ix = (stream + end * COLO_PHI) >> 48 & (COLO_AHEAD - 1);	/* ends of a stream lie apart */

	return (struct colo_ahead_place){
		.tag = colo_mix(stream, (__u64)flow->anchor << 32 | end),
		.word = colo_ahead.lookup(&ix),
	};
}

/* The SVM's stream up to `end` has this digest. */
static __always_inline void colo_ahead_put(struct colo_flow *flow, __u64 digest, __u32 end)
{
	struct colo_ahead_place place = colo_ahead_at(flow, end);

	if (place.word)
		*place.word = digest ^ place.tag;
}

/* Has it? */
static __always_inline int colo_ahead_has(struct colo_flow *flow, __u64 digest, __u32 end)
{
	struct colo_ahead_place place = colo_ahead_at(flow, end);

	return place.word && *place.word == (digest ^ place.tag);
}

#endif /* COLO_AHEAD_H */
