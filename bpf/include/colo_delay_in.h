/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The delay line. A long GSO frame of the PVM that is not verified yet is not copied at once. It
 * goes to a device of ours. Behind the device's queue colo_park looks at the frame again, some ten
 * microseconds later, and so on for ten milliseconds. In bulk transfers the SVM has caught up by
 * then, and the frame leaves as one skb. Otherwise it is cut and held as any other frame.
 *
 * A parked frame has a slot in its flow's list, with the digest at its end, like a held frame: the
 * SVM's walk stops there, and later frames of the flow wait behind it. In place of the frame's
 * bytes the slot keeps the digests at the ends of its cuts.
 *
 * The queue has three classes. New frames wait in the last one. Only the first frame of each flow
 * recirculates, in the first class, so that order is kept. (In a single queue, new frames would
 * come between those that recirculate, and would recirculate themselves: two rounds for each frame,
 * for as long as the flow is busy.) A frame that recirculates for long would keep other flows
 * waiting. So it goes to the second class, with the frames of its flow that come out behind it, and
 * shares the line with new frames.
 */
#ifndef COLO_DELAY_IN_H
#define COLO_DELAY_IN_H

#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_event.h"
#include "colo_flow.h"
#include "colo_hold.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"

#define COLO_PARK_MARK		0xC5000000u	/* of a parked frame; plus its slot + 1 */
#define COLO_PARK_REF		0x00ffffffu
#define COLO_PARK_NS		10000000ULL	/* in the line at most */
#define COLO_PARK_STUCK_NS	4000000ULL	/* the same, if the SVM stands inside */
#define COLO_PARK_RECENT_NS	1000000ULL	/* the flow still uses the line */
#define COLO_PARK_LOST_NS	100000000ULL	/* a frame that has not come back */
#define COLO_PARK_NOT		4	/* frames held at once, after one was parked in vain */
#define COLO_PARK_ROUNDS	32	/* before all others, some 40 us each */

/* Frames of this flow were parked a moment ago: one that is not parked would overtake them. */
static __always_inline int colo_park_now(struct colo_flow *flow)
{
	/* Signed: another CPU may have parked one after this frame was taken its time. */
	return (__s64)(flow->seen_ns - flow->parked_ns) < (__s64)COLO_PARK_RECENT_NS;
}

/* Is the frame to be parked? The walk has hashed all of it. */
static __always_inline int colo_park_wanted(struct colo_config *conf, struct colo_work *work,
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
static __always_inline int colo_line_send(struct __sk_buff *skb, struct colo_config *conf,
					  __u32 line)
{
	skb->priority = line;
	return bpf_redirect(conf->park_ifindex, 0);
}

/* The frame recirculates once more. */
static __always_inline void colo_park_again(struct colo_work *work, struct colo_flow *flow,
					    int first)
{
	work->line = first && flow->rounds++ < COLO_PARK_ROUNDS ? COLO_LINE_FIRST : COLO_LINE_LATE;
	colo_plan_set(&work->plan, COLO_V_HOLD, COLO_R_PARKED);
}

/*
 * Take a slot for the frame, and put the slot into the flow's list. Without a free slot the frame
 * is held in the usual way, as far as there is room.
 */
static __always_inline void colo_park_in(struct __sk_buff *skb, struct colo_config *conf,
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

/* The skb of a parked slot was lost on the way. The PVM will resend its bytes. */
static __always_inline int colo_park_lost(struct colo_slot *slot)
{
	return bpf_ktime_get_boot_ns() - slot->at_ns > COLO_PARK_LOST_NS;
}

#endif /* COLO_DELAY_IN_H */
