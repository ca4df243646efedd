/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One walk over the bytes of a segment: load them, list the stops, hash (colo_hash.h), judge.
 *
 * A stop is a place where a digest is made. For the PVM these are the ends of the SVM's segments
 * (flow->bound), for the SVM the ends of held frames. A GSO frame is held as the frames it stands
 * for, and each of those may leave by itself: so the ends of these cuts are stops, too. The last
 * stop is the segment's end. Where the other side has a digest at the same place, both are
 * compared.
 */
#ifndef COLO_STREAM_H
#define COLO_STREAM_H

#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_hash.h"
#include "colo_hold.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_verifier.h"

static __always_inline void colo_side_begin(struct colo_side *side, __u64 key, __u32 next)
{
	colo_lanes_begin(side->lane, key);
	__builtin_memset(side->part, 0, sizeof(side->part));
	side->next = next;
}

static __always_inline struct colo_bound *colo_bound_at(struct colo_flow *flow, __u32 n)
{
	return &flow->bound[(flow->first_bound + n) & (COLO_BOUNDS - 1)];
}

/*
 * The ring is full: every other entry of its newer half goes, and from now on an entry stands for
 * twice as many ends. So the entries lie evenly over all that the SVM is ahead, and a PVM that may
 * send a thirtieth of it meets one. The oldest stay until the PVM has passed them.
 */
static __always_inline void colo_bounds_thin(struct colo_flow *flow)
{
	__u32 n;

#pragma unroll
	for (n = COLO_BOUNDS / 2; n < COLO_BOUNDS / 4 * 3; n++)
		*colo_bound_at(flow, n) = *colo_bound_at(flow, 2 * n - COLO_BOUNDS / 2 + 1);
	flow->bounds = COLO_BOUNDS / 4 * 3;
	flow->stride = flow->stride ? flow->stride * 2 : 2;
}

/* Remember where a segment of the SVM ended, ahead of the PVM. The newest is always there. */
static __always_inline void colo_flow_bound(struct colo_flow *flow, __u64 digest, __u32 end)
{
	struct colo_bound *bound;

	if (!flow->bounds || flow->strode >= flow->stride) {
		if (flow->bounds >= COLO_BOUNDS)
			colo_bounds_thin(flow);
		flow->bounds++;
		flow->strode = 0;
	}
	flow->strode++;
	bound = colo_bound_at(flow, flow->bounds - 1);
	bound->digest = digest;
	bound->end = end;
}

/* The PVM has passed the oldest `n`. */
static __always_inline void colo_bounds_pass(struct colo_flow *flow, __u32 n)
{
	flow->first_bound += n;
	flow->bounds -= n;
	if (flow->bounds < COLO_BOUNDS / 2)
		flow->stride = 0;
}

/*
 * An SVM far ahead has more ends than its flow has room for. Without the end where a frame of the
 * PVM stops, that frame waits for the PVM's next one. A PVM that waits for an ACK of just this
 * frame sends no next one. So all ends beyond the oldest stand in one table for all flows, too. An
 * entry may overwrite another connection's: that one is then missing, and its flow has some of its
 * own.
 *
 * One word holds the digest, mixed with connection, epoch and place. So it needs no lock. A word of
 * another connection, epoch or place is equal by chance only, one in 2^64.
 */

#define COLO_AHEAD	65536	/* a power of two: 95 MB of segments of 1448 bytes */

BPF_ARRAY(colo_ahead, __u64, COLO_AHEAD);

struct colo_ahead_place {
	__u64 tag;		/* of that place in the flow's stream, in this epoch */
	__u64 *word;
};

static __always_inline struct colo_ahead_place colo_ahead_at(struct colo_flow *flow, __u32 end)
{
	__u64 stream = colo_mix(flow->owner + flow->gen, flow->epoch);
	/* Ends of one stream lie apart. */
	__u32 ix = (stream + end * COLO_PHI) >> 48 & (COLO_AHEAD - 1);

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

static __always_inline void colo_stop_add(struct colo_work *work, __u32 at, __u64 other, __u32 cut)
{
	struct colo_stop *stop = &work->stop[work->walk.stops & (COLO_STOPS - 1)];

	stop->at = at;
	stop->other = other;
	stop->cut = cut;
	work->walk.stops++;
}

/* The next stop of a loop over them, or none; the loop begins with walk->stop = 0. */
static __always_inline struct colo_stop *colo_stop_next(struct colo_work *work)
{
	struct colo_walk *walk = &work->walk;

	COLO_FORGET();
	if (walk->stop >= walk->stops)
		return 0;
	return &work->stop[walk->stop++ & (COLO_STOPS - 1)];
}

/* Compare at each stop; up to the last where both agree, both VMs have produced the same. */
static __always_inline void colo_walk_judge(struct colo_work *work)
{
	struct colo_walk *walk = &work->walk;
	struct colo_stop *stop;
	int i;

	walk->bad = 0;
	walk->stop = 0;
#pragma nounroll
	for (i = 0; i < COLO_STOPS; i++) {
		stop = colo_stop_next(work);
		if (!stop)
			break;
		if (stop->cut)
			work->cut_digest[(stop->cut - 1) & (COLO_CUTS - 1)] = stop->digest;
		if (!stop->other)
			continue;
		if (stop->other != stop->digest) {
			walk->bad = walk->stop;
			break;
		}
		walk->met = walk->base + stop->at;
	}
}

/*
 * Load what the segment adds to the stream of `side` into the buffer, behind the unfinished
 * block. -1: the bytes do not fit. The caller has made sure that seq <= side->next < end.
 */
static __always_inline int colo_walk_load(struct __sk_buff *skb, struct colo_work *work,
					  struct colo_buf *buf, struct colo_flow *flow,
					  struct colo_side *side)
{
	struct colo_walk *walk = &work->walk;
	struct colo_pkt *pkt = &work->pkt;
	__u32 skip = side->next - pkt->seq;
	__u32 fin = pkt->flags & COLO_TCP_FIN ? 1 : 0;
	__u64 phase = (side->next - flow->anchor) & (COLO_BLOCK - 1);
	__u64 len = pkt->len > skip ? pkt->len - skip : 0, end;

	__builtin_memcpy(walk->lane, side->lane, sizeof(walk->lane));
	__builtin_memcpy(&buf->word[COLO_START / 8], side->part, sizeof(side->part));
	walk->pos = COLO_START;
	walk->base = side->next - phase - COLO_START;
	walk->limit = COLO_START + phase + len + fin;
	walk->stops = 0;
	walk->met = walk->from = side->next;
	walk->fin = fin ? COLO_FIN_MARK : 0;
	COLO_OPAQUE(phase);
	phase = COLO_START + (phase & (COLO_BLOCK - 1));
	if (len && colo_load(skb, buf, pkt->payload + skip, phase, len))
		return -1;
	if (fin) {	/* counts as a byte of its own */
		end = phase + len;
		if (colo_above(end, 65536 + 2 * COLO_BLOCK))
			return -1;
		*((__u8 *)buf->word + end) = 0;
	}
	return 0;
}

/*
 * A GSO frame stands for several: each would be held in a slot of its own, and each has an end
 * where the other side may stop.
 */
static __always_inline void colo_cuts(struct __sk_buff *skb, struct colo_work *work)
{
	__u32 len = work->pkt.len, size = skb->gso_size;

	work->cut = 0;
	work->cuts = 1;
	work->cut_bytes = len;
	work->cut_digest[0] = 0;
	if (!size || len <= size)
		return;
	__builtin_memset(work->cut_digest, 0, sizeof(work->cut_digest));
	work->cut_bytes = size;
	work->cuts = (len + size - 1) / size;
}

/* The walk begins in the first cut that has bytes from `next` on. */
static __always_inline void colo_cut_first(struct colo_work *work, __u32 next)
{
	__u32 cut = 0;

	if (work->cuts > 1)
		cut = (next - work->pkt.seq) / work->cut_bytes;
	work->walk.cut = cut + 1 < work->cuts ? cut : work->cuts - 1;
}

/* Where the cut ends that the list of stops has come to. */
static __always_inline __u32 colo_cut_at(struct colo_work *work)
{
	struct colo_walk *walk = &work->walk;

	if (walk->cut + 1 < work->cuts)
		return work->pkt.seq + (walk->cut + 1) * work->cut_bytes - walk->base;
	return walk->limit;
}

/* The stops of a PVM walk: the SVM's boundaries and the ends of cuts, in order; then the end. */
static __always_inline void colo_stops_pvm(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_walk *walk = &work->walk;
	struct colo_bound *bound;
	__u32 at, cut_at;
	int i;

	walk->bound = 0;
#pragma nounroll
	for (i = 0; i < COLO_STOPS; i++) {
		COLO_FORGET();
		cut_at = colo_cut_at(work);
		bound = colo_bound_at(flow, walk->bound);
		at = bound->end - walk->base;
		if (walk->bound >= flow->bounds || at > cut_at) {
			colo_stop_add(work, cut_at, 0, walk->cut + 1);
			walk->cut++;
		} else if (at == cut_at) {
			colo_stop_add(work, cut_at, bound->digest, walk->cut + 1);
			walk->bound++;
			walk->cut++;
		} else {
			colo_stop_add(work, at, bound->digest, 0);
			walk->bound++;
		}
		COLO_FORGET();
		if (walk->cut >= work->cuts)
			return;
	}
	/* Absurdly many: the rest counts as not seen, and the PVM's next segment leaves a gap. */
	walk->limit = work->stop[COLO_STOPS - 1].at;
}

/* The stops of an SVM walk: the ends of held frames and the ends of cuts, in order. */
static __always_inline void colo_stops_svm(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_walk *walk = &work->walk;
	struct colo_slot *slot;
	__u32 ix, cut_at, end;
	int i;

	walk->held = flow->unmet;
	walk->last = flow->svm.next;
#pragma nounroll
	for (i = 0; i < COLO_STOPS - 2; i++) {
		COLO_FORGET();
		cut_at = colo_cut_at(work);
		ix = walk->held - 1;
		slot = colo_hold.lookup(&ix);
		end = slot ? slot->end : 0;
		if (!slot || COLO_AFTER(end, walk->base + cut_at)) {
			colo_stop_add(work, cut_at, 0, walk->cut + 1);
			if (++walk->cut >= work->cuts)
				return;
			continue;
		}
		walk->held = slot->next;
		if (slot->epoch != flow->epoch || !slot->digest || !COLO_AFTER(end, walk->last))
			continue;
		walk->last = end;
		colo_stop_add(work, end - walk->base, slot->digest, 0);
	}
	/* Very many: of the rest, only the last one and the segment's end are looked at. */
	COLO_FORGET();
	ix = flow->tail - 1;
	slot = colo_hold.lookup(&ix);
	if (slot && slot->epoch == flow->epoch && slot->digest &&
	    COLO_AFTER(slot->end, walk->last) && !COLO_AFTER(slot->end, walk->base + walk->limit))
		colo_stop_add(work, slot->end - walk->base, slot->digest, 0);
	colo_stop_add(work, walk->limit, 0, work->cuts);
}

/*
 * All of them. A loop of its own: in that of colo_bounds_svm the verifier would look at more than a
 * million instructions.
 */
static __always_inline void colo_ahead_all(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_walk *walk = &work->walk;
	struct colo_stop *stop;
	int i;

	walk->stop = 0;
#pragma nounroll
	for (i = 0; i < COLO_STOPS; i++) {
		stop = colo_stop_next(work);
		if (!stop)
			break;
		if (stop->cut && COLO_AFTER(walk->base + stop->at, flow->pvm.next))
			colo_ahead_put(flow, stop->digest, walk->base + stop->at);
	}
}

/* Where cuts of the SVM ended, ahead of the PVM: the PVM will stop there. */
static __always_inline void colo_bounds_svm(struct colo_work *work, struct colo_flow *flow)
{
	struct colo_walk *walk = &work->walk;
	struct colo_stop *stop;
	int i;

	walk->stop = 0;
#pragma nounroll
	for (i = 0; i < COLO_STOPS; i++) {
		stop = colo_stop_next(work);
		if (!stop)
			break;
		if (stop->cut && COLO_AFTER(walk->base + stop->at, flow->pvm.next))
			colo_flow_bound(flow, stop->digest, walk->base + stop->at);
	}
	if (flow->bounds > COLO_BOUNDS / 2)	/* some of them will go */
		colo_ahead_all(work, flow);
}

static __always_inline void colo_side_store(struct colo_walk *walk, struct colo_side *side)
{
	__builtin_memcpy(side->lane, walk->lane, sizeof(side->lane));
	__builtin_memcpy(side->part, walk->tail, sizeof(side->part));
	side->next = walk->base + walk->limit;
}

/* What the walk found: `verified` moves to the last stop that agreed, or the flow is bad. */
static __always_inline void colo_walk_result(struct colo_work *work, struct colo_flow *flow,
					     int pvm)
{
	struct colo_walk *walk = &work->walk;
	struct colo_plan *plan = &work->plan;
	struct colo_stop *stop;

	colo_walk_judge(work);
	if (walk->met != walk->from && COLO_AFTER(walk->met, flow->verified))
		flow->verified = walk->met;
	if (!walk->bad)
		return;
	stop = &work->stop[(walk->bad - 1) & (COLO_STOPS - 1)];
	flow->flags |= COLO_F_BAD;
	plan->event = COLO_EV_MISMATCH;
	plan->offset = walk->base + stop->at;
	plan->pvm_digest = pvm ? stop->digest : stop->other;
	plan->svm_digest = pvm ? stop->other : stop->digest;
}

#endif /* COLO_STREAM_H */
