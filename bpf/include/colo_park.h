/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The delay line. A long GSO frame of the PVM that is not verified yet is not copied at once: it goes
 * to a device of ours, behind whose queue colo_park looks at it again, some ten microseconds later,
 * and so on for ten milliseconds. In bulk the SVM has caught up by then, and the frame leaves as the one
 * skb it came as. One for which that takes longer is cut and held as any other.
 *
 * All the while it has a slot in its flow's list, with the digest at its end, as a held frame has: the
 * SVM's walk stops there, and what comes behind it waits. Instead of the frame's bytes the slot keeps the
 * digests at the ends of its cuts.
 *
 * The queue has three classes. What comes waits in the last: behind a frame that may not leave yet nothing
 * of its flow may. So only that one goes round, in a class before all, and order is kept. (In one queue,
 * what comes would get between those that go round, and go round itself: two rounds for every frame, for
 * as long as the flow is busy.) One for which that takes long would keep other flows waiting: it, and those
 * of its flow that come out behind it, share the line with what comes.
 */
#ifndef COLO_PARK_H
#define COLO_PARK_H

#define COLO_PARK_MARK		0xC5000000u	/* of a frame in the line; the rest is its slot + 1 */
#define COLO_PARK_REF		0x00ffffffu
#define COLO_PARK_NS		10000000ULL	/* in the line at most: the SVM may wait for a processor */
#define COLO_PARK_STUCK_NS	4000000ULL	/* the same if it stands inside the frame */
#define COLO_PARK_RECENT_NS	1000000ULL	/* the flow's frames go this way still */
#define COLO_PARK_LOST_NS	100000000ULL	/* it did not come back: a queue was full */
#define COLO_PARK_NOT		4		/* frames of a flow held at once, after one was in vain */
#define COLO_PARK_ROUNDS	32	/* before all others, some 40 us each */

/* Frames of this flow were parked a moment ago: whatever is not does not leave in order. */
static __always_inline int colo_park_now(struct colo_flow *flow)
{
	return flow->seen_ns - flow->parked_ns < COLO_PARK_RECENT_NS;
}

/* Is the frame to be parked? The walk has hashed all of it. */
static __always_inline int colo_park_wanted(struct colo_conf *conf, struct colo_work *work,
					    struct colo_flow *flow)
{
	if (!conf->park_ifindex || !work->now.may_release || work->cuts > COLO_CUTS ||
	    work->walk.from != work->pkt.seq || work->pkt.flags & (COLO_TCP_SYN | COLO_TCP_FIN) ||
	    flow->flags & (COLO_F_BAD | COLO_F_LOST) ||
	    (work->cuts < COLO_PARK_CUTS && !colo_park_now(flow)))
		return 0;
	if (!flow->unparked)
		return 1;
	flow->unparked--;
	return 0;
}

/* Into the line, as the last thing a program does: what it returns. */
static __always_inline int colo_line_send(struct __sk_buff *skb, struct colo_conf *conf, __u32 line)
{
	skb->priority = line;
	return bpf_redirect(conf->park_ifindex, 0);
}

/* The frame goes round once more. */
static __always_inline void colo_park_again(struct colo_work *work, struct colo_flow *flow, int first)
{
	work->line = first && flow->rounds++ < COLO_PARK_ROUNDS ? COLO_LINE_FIRST : COLO_LINE_LATE;
	colo_plan_set(&work->plan, COLO_V_HOLD, COLO_R_PARKED);
}

/* Take a slot for the frame, and put it into the flow's list. If there is none it is held, or tries. */
static __always_inline void colo_park_in(struct __sk_buff *skb, struct colo_conf *conf,
					 struct colo_work *work, struct colo_flow *flow)
{
	struct colo_pkt *pkt = &work->pkt;
	__u32 ref = colo_hold_alloc(conf), ix = ref - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);
	struct colo_frame *frame = colo_frames.lookup(&ix);

	if (!slot || !frame || ref > COLO_PARK_REF)
		return;
	__builtin_memcpy(frame->data, work->cut_digest, sizeof(work->cut_digest));
	slot->flow = work->flow;
	slot->kind = COLO_SLOT_PARKED;
	slot->gen = flow->gen;
	slot->next = 0;
	slot->len = skb->len;
	slot->tcp_off = 0;
	slot->data_off = 0;
	slot->bytes = 0;
	slot->ack = pkt->ack;
	slot->start = slot->part = pkt->seq;
	slot->end = work->end;
	slot->digest = work->cut_digest[(work->cuts - 1) & (COLO_CUTS - 1)];
	colo_hold_count(conf, &work->flow, work->now.epoch,
			colo_hold_publish(slot, work->now.epoch, work->now.at_ns));
	colo_flow_append(flow, slot, ref);
	flow->parked_ns = flow->seen_ns;
	work->parked = ref;
	work->step = COLO_STEP_DONE;
	work->plan.reason = COLO_R_PARKED;
}

/*
 * The skb of a parked slot was lost on the way: it is nobody's any more. Its bytes come again, as the PVM
 * resends them.
 */
static __always_inline int colo_park_lost(struct colo_slot *slot)
{
	return bpf_ktime_get_boot_ns() - slot->at_ns > COLO_PARK_LOST_NS;
}

#endif /* COLO_PARK_H */
