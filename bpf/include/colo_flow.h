/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One TCP connection as the primary sees it: what both VMs have produced, how far it is
 * verified, which frames wait. Everything here runs under flow->lock, and decides without
 * touching the host; compare.c carries it out.
 */
#ifndef COLO_FLOW_H
#define COLO_FLOW_H

static __always_inline void colo_plan_set(struct colo_plan *plan, __u32 verdict, __u32 reason)
{
	plan->verdict = verdict;
	plan->reason = reason;
}

static __always_inline void colo_side_begin(struct colo_side *side, __u64 key, __u32 next)
{
	colo_lanes_begin(side->lane, key);
	__builtin_memset(side->part, 0, sizeof(side->part));
	side->next = next;
}

/*
 * A proven turn: both VMs now are what the PVM was. All bytes below p_high are in the
 * checkpoint, so both sides hash from exactly there; and the SVM has received what the PVM had
 * acknowledged, never what the SVM of the past epoch had: that one is gone.
 * Done at the first frame after the turn, before the frame moves p_high or p_ack.
 */
static __always_inline void colo_flow_turn(struct colo_flow *flow, __u64 epoch, __u64 key)
{
	__u32 flags = flow->flags & (COLO_F_HAS_HIGH | COLO_F_HAS_ACK | COLO_F_PVM_SYN |
				     COLO_F_PVM_SCALE | COLO_F_PVM_FIN | COLO_F_RESET);

	if (flags & COLO_F_HAS_HIGH)
		flags |= COLO_F_ANCHORED;
	if (flags & COLO_F_HAS_ACK)
		flags |= COLO_F_HAS_FLOOR;
	if (flags & COLO_F_RESET)
		flags |= COLO_F_OVER;
	flow->epoch = epoch;
	flow->flags = flags;
	flow->anchor = flow->p_high;
	flow->verified = flow->p_high;
	flow->floor = flow->p_ack;
	flow->s_scale = flow->p_scale;
	flow->s_resends = 0;
	flow->bounds = 0;
	flow->stride = 0;
	flow->unmet = 0;
	flow->svm_reset = 0;
	colo_side_begin(&flow->pvm, key, flow->p_high);
	colo_side_begin(&flow->svm, key, flow->p_high);
}

/*
 * The PVM opens a connection on this tuple. Its SYN is the stream's first byte: verified ends
 * before it until the SVM has sent its own. Held frames of an older connection are
 * orphaned by the new generation; the next flush sends them.
 */
static __always_inline void colo_flow_begin(struct colo_flow *flow, struct colo_now *now,
					    __u64 key, __u32 isn)
{
	flow->flags &= COLO_F_SVM_SYN;
	flow->c_known = 0;
	flow->c_gone = 0;
	flow->flags |= COLO_F_PVM_SYN;
	flow->gen++;
	flow->isn = isn;
	flow->head = 0;
	flow->tail = 0;
	flow->held = 0;
	flow->ack_slot = 0;
	flow->bounds = 0;
	flow->stride = 0;
	flow->unmet = 0;
	flow->svm_reset = 0;
	flow->unparked = 0;
	flow->rounds = 0;
	if (now->phase == COLO_TURNING || now->mode == COLO_SOLO)
		return;	/* anchored by the next proven turn */
	flow->flags |= COLO_F_ANCHORED;
	flow->anchor = isn + 1;
	flow->verified = isn;
	colo_side_begin(&flow->pvm, key, isn + 1);
	colo_side_begin(&flow->svm, key, isn + 1);
}

/* The PVM has sent its SYN in this epoch and the SVM's is not matched with it. */
static __always_inline int colo_flow_syn_waits(struct colo_flow *flow)
{
	return (flow->flags & COLO_F_PVM_SYN) && (flow->flags & COLO_F_ANCHORED) &&
	       flow->verified == flow->isn;
}

/*
 * Both SYNs are there: if they answer the same SYN of the client, and offer the same for the
 * connection's life (a SYN cookie of one side may leave options out), it is verified.
 */
static __always_inline int colo_flow_match_syn(struct colo_plan *plan, struct colo_flow *flow)
{
	__u32 p_ack = flow->flags & COLO_F_HAS_ACK ? flow->p_ack : 0;

	if (!(flow->flags & COLO_F_SVM_SYN) || flow->s_syn_ack != p_ack)
		return 0;
	if (flow->s_offer != flow->p_offer) {
		flow->flags |= COLO_F_BAD;
		plan->event = COLO_EV_MISMATCH;
		plan->offset = flow->isn;
		plan->pvm_digest = flow->p_offer;
		plan->svm_digest = flow->s_offer;
		return 0;
	}
	flow->verified = flow->isn + 1;
	flow->flags &= ~COLO_F_SVM_SYN;
	if (flow->flags & COLO_F_HAS_ACK) {
		flow->floor = p_ack;
		flow->flags |= COLO_F_HAS_FLOOR;
	}
	return 1;
}

/* The window edge that may be shown: the smaller of both sides'. */
static __always_inline __u32 colo_flow_edge(struct colo_flow *flow, __u32 edge)
{
	if (flow->flags & COLO_F_HAS_EDGE && COLO_AFTER(edge, flow->s_edge))
		return flow->s_edge;
	return edge;
}

/*
 * The client may be told now what it was not told before: more is acknowledged, or its window is twice as
 * wide, from when on Linux' own receiver finds that worth a segment.
 */
static __always_inline int colo_ack_due(struct colo_flow *flow, struct colo_slot *slot)
{
	__u32 edge = colo_flow_edge(flow, slot->edge);

	return COLO_AFTER(flow->floor, slot->end) ||
	       (COLO_AFTER(edge, slot->start) && edge - slot->start >= slot->start - slot->end);
}

static __always_inline int colo_flow_owes(struct colo_flow *flow)
{
	__u32 ix = flow->ack_slot - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);

	return slot && colo_ack_due(flow, slot);
}

/* I2: an ACK of the SVM, in this epoch, raises the floor. Returns 1 if the client is to be told. */
static __always_inline int colo_flow_svm_ack(struct colo_flow *flow, __u32 ack, __u16 window)
{
	int raised = 0;

	if (!(flow->flags & COLO_F_ANCHORED) || colo_flow_syn_waits(flow))
		return 0;
	if (!(flow->flags & COLO_F_HAS_FLOOR) || COLO_AFTER(ack, flow->floor)) {
		flow->floor = ack;
		flow->flags |= COLO_F_HAS_FLOOR;
		raised = 1;
	}
	if (flow->flags & COLO_F_PVM_SCALE && !COLO_AFTER(flow->floor, ack)) {
		flow->s_edge = ack + ((__u32)window << (flow->s_scale & 15));
		flow->flags |= COLO_F_HAS_EDGE;
	}
	return raised || colo_flow_owes(flow);
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

static __always_inline __u32 colo_flow_scale(struct colo_flow *flow)
{
	return flow->flags & COLO_F_PVM_SCALE ? flow->p_scale : COLO_NO_SCALE;
}

/* Append slot ref - 1 to the flow's held frames. */
static __always_inline void colo_flow_append(struct colo_flow *flow, struct colo_slot *slot,
					     __u32 ref)
{
	__u32 ix = flow->tail - 1;
	struct colo_slot *tail;

	if (flow->tail) {
		tail = colo_hold.lookup(&ix);
		if (tail)
			tail->next = ref;
	} else {
		flow->head = ref;
	}
	flow->tail = ref;
	flow->held++;
	if (!flow->unmet && slot->digest && COLO_AFTER(slot->end, flow->svm.next))
		flow->unmet = ref;
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
		COLO_OPAQUE(end);
		if (end > 65536 + 2 * COLO_BLOCK)
			return -1;
		*((__u8 *)buf->word + end) = 0;
	}
	return 0;
}

/*
 * A GSO frame stands for several: each would be held in a slot of its own, and each has an end where
 * the other side may stop.
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
	/* Very many: from here on only the last of them and the end are looked at. */
	COLO_FORGET();
	ix = flow->tail - 1;
	slot = colo_hold.lookup(&ix);
	if (slot && slot->epoch == flow->epoch && slot->digest &&
	    COLO_AFTER(slot->end, walk->last) && !COLO_AFTER(slot->end, walk->base + walk->limit))
		colo_stop_add(work, slot->end - walk->base, slot->digest, 0);
	colo_stop_add(work, walk->limit, 0, work->cuts);
}

/* All of them. In the loop of colo_bounds_svm the verifier would look at more than a million instructions. */
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

#endif /* COLO_FLOW_H */
