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
	side->hash = key;
	side->part = 0;
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
				     COLO_F_PVM_SCALE | COLO_F_PVM_FIN | COLO_F_CLIENT_FIN | COLO_F_RESET);

	if (flags & COLO_F_HAS_HIGH)
		flags |= COLO_F_ANCHORED;
	if (flags & COLO_F_HAS_ACK)
		flags |= COLO_F_HAS_FLOOR;
	flow->epoch = epoch;
	flow->flags = flags;
	flow->anchor = flow->p_high;
	flow->verified = flow->p_high;
	flow->floor = flow->p_ack;
	flow->s_scale = flow->p_scale;
	flow->s_resends = 0;
	flow->bounds = 0;
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
	flow->flags |= COLO_F_PVM_SYN;
	flow->gen++;
	flow->isn = isn;
	flow->head = 0;
	flow->tail = 0;
	flow->held = 0;
	flow->ack_slot = 0;
	flow->bounds = 0;
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

/* Both SYNs are there: if they answer the same SYN of the client, the connection is verified. */
static __always_inline int colo_flow_match_syn(struct colo_flow *flow)
{
	__u32 p_ack = flow->flags & COLO_F_HAS_ACK ? flow->p_ack : 0;

	if (!(flow->flags & COLO_F_SVM_SYN) || flow->s_syn_ack != p_ack)
		return 0;
	flow->verified = flow->isn + 1;
	flow->flags &= ~COLO_F_SVM_SYN;
	if (flow->flags & COLO_F_HAS_ACK) {
		flow->floor = p_ack;
		flow->flags |= COLO_F_HAS_FLOOR;
	}
	return 1;
}

/* I2: an ACK of the SVM, in this epoch, raises the floor. Returns 1 if it moved. */
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
	return raised;
}

/* The window edge that may be shown: the smaller of both sides'. */
static __always_inline __u32 colo_flow_edge(struct colo_flow *flow, __u32 edge)
{
	if (flow->flags & COLO_F_HAS_EDGE && COLO_AFTER(edge, flow->s_edge))
		return flow->s_edge;
	return edge;
}

/* Remember where a segment of the SVM ended, ahead of the PVM. */
static __always_inline void colo_flow_bound(struct colo_flow *flow, __u64 digest, __u32 end)
{
	__u32 ix = flow->bounds;

	/* Full: only the last is replaced; the oldest stay until the PVM has passed them. */
	if (ix >= COLO_BOUNDS)
		ix = COLO_BOUNDS - 1;
	flow->bound[ix].digest = digest;
	flow->bound[ix].end = end;
	flow->bounds = ix + 1;
}

/* Stops of a PVM walk: the SVM's boundaries in (next, end]. */
static __always_inline void colo_stops_of_svm(struct colo_work *work, struct colo_flow *flow,
					      __u32 end, __u32 base)
{
	int i;

	work->stops = 0;
#pragma nounroll
	for (i = 0; i < COLO_BOUNDS; i++) {
		struct colo_bound *bound = &flow->bound[i];
		__u64 used;

		COLO_FORGET();
		used = work->stops;
		if (i >= flow->bounds || used >= COLO_STOPS)
			break;
		if (!COLO_AFTER(bound->end, flow->pvm.next))
			continue;
		if (COLO_AFTER(bound->end, end))
			break;
		work->at[used].digest = bound->digest;
		work->at[used].end = bound->end;
		work->at[used].at = bound->end - base;
		work->stops = used + 1;
	}
}

/* Drop the boundaries the PVM has passed. */
static __always_inline void colo_bounds_trim(struct colo_work *work, struct colo_flow *flow)
{
	int i;

	work->stops = 0;
#pragma nounroll
	for (i = 0; i < COLO_BOUNDS; i++) {
		__u64 kept;

		COLO_FORGET();
		kept = work->stops;
		if (i >= flow->bounds || kept >= COLO_BOUNDS)
			break;
		if (!COLO_AFTER(flow->bound[i].end, flow->pvm.next))
			continue;
		flow->bound[kept].digest = flow->bound[i].digest;
		flow->bound[kept].end = flow->bound[i].end;
		work->stops = kept + 1;
	}
	flow->bounds = work->stops;
}

/* Stops of an SVM walk: the ends of held PVM frames in (next, end]. */
static __always_inline void colo_stops_of_pvm(struct colo_work *work, struct colo_flow *flow,
					      __u32 end, __u32 base)
{
	__u32 ref = flow->head, last = flow->svm.next;
	int i;

	work->stops = 0;
	for (i = 0; i < COLO_STOPS; i++) {
		struct colo_slot *slot;
		__u32 ix = ref - 1;
		__u64 used;

		COLO_FORGET();
		used = work->stops;
		if (!ref || used >= COLO_STOPS)
			break;
		slot = colo_hold.lookup(&ix);
		if (!slot)
			break;
		ref = slot->next;
		if (slot->epoch != flow->epoch || !slot->digest || !COLO_AFTER(slot->end, last))
			continue;
		if (COLO_AFTER(slot->end, end))
			break;
		last = slot->end;
		work->at[used].digest = slot->digest;
		work->at[used].end = last;
		work->at[used].at = last - base;
		work->stops = used + 1;
	}
}

/* Append slot ref - 1 to the flow's held frames. */
static __always_inline void colo_flow_append(struct colo_flow *flow, __u32 ref)
{
	__u32 ix = flow->tail - 1;
	struct colo_slot *slot;

	if (flow->tail) {
		slot = colo_hold.lookup(&ix);
		if (slot)
			slot->next = ref;
	} else {
		flow->head = ref;
	}
	flow->tail = ref;
	flow->held++;
}

static __always_inline void colo_flow_pop(struct colo_flow *flow, struct colo_slot *slot)
{
	flow->head = slot->next;
	if (!flow->head)
		flow->tail = 0;
	flow->held--;
}

/*
 * Load what the segment adds to the stream of `side` for the walk; the stops are set.
 * -1: the bytes do not fit. The caller has made sure that seq <= side->next < end.
 */
static __always_inline int colo_segment_load(struct __sk_buff *skb, struct colo_work *work,
					     struct colo_flow *flow, struct colo_side *side,
					     __u64 key)
{
	struct colo_pkt *pkt = &work->pkt;
	__u32 skip = side->next - pkt->seq;
	__u32 fin = pkt->flags & COLO_TCP_FIN ? 1 : 0;
	__u64 phase = (side->next - flow->anchor) & 7;
	__u64 len = pkt->len > skip ? pkt->len - skip : 0;

	work->buf[0] = side->part;
	COLO_OPAQUE(phase);
	phase &= 7;
	if (len) {
		COLO_OPAQUE(len);
		if (len < 1 || len > COLO_FRAME_MAX - 16)
			return -1;
		if (bpf_skb_load_bytes(skb, pkt->payload + skip, (__u8 *)work->buf + phase, len))
			return -1;
	}
	work->key = key;
	work->hash = side->hash;
	work->flags = fin ? COLO_W_FIN : 0;
	work->word = 0;
	work->stop = work->stops ? 0 : COLO_STOPS;
	work->at[COLO_STOPS].at = phase + len + fin;
	if (fin)	/* counts as a byte of its own */
		*((__u8 *)work->buf + ((phase + len) & (COLO_FRAME_MAX - 1))) = 0;
	return 0;
}

static __always_inline void colo_side_store(struct colo_work *work, struct colo_side *side)
{
	side->hash = work->hash;
	side->part = work->part;
	side->next = work->end;
}

/* What the walk found: `verified` moves to the last stop that agreed, or the flow is bad. */
static __always_inline void colo_walk_result(struct colo_work *work, struct colo_flow *flow,
					     int ours_is_pvm)
{
	struct colo_plan *plan = &work->plan;
	__u32 bad = work->bad;

	if (work->flags & COLO_W_MET && COLO_AFTER(work->met, flow->verified))
		flow->verified = work->met;
	if (!(work->flags & COLO_W_BAD) || bad > COLO_STOPS)
		return;
	flow->flags |= COLO_F_BAD;
	plan->event = COLO_EV_MISMATCH;
	plan->offset = work->at[bad].end;
	plan->pvm_digest = ours_is_pvm ? work->bad_digest : work->at[bad].digest;
	plan->svm_digest = ours_is_pvm ? work->at[bad].digest : work->bad_digest;
}

#endif /* COLO_FLOW_H */
