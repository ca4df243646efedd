/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the data plane tells the control plane, and the log of mismatches.
 */
#ifndef COLO_EVENT_H
#define COLO_EVENT_H

#include <uapi/linux/in.h>

#include "colo_abi.h"
#include "colo_maps.h"
#include "colo_scratch.h"

BPF_TABLE_PINNED("array", __u32, struct colo_mismatch, colo_mism, COLO_MISMATCHES,
		 COLO_PIN "/colo_mism");
BPF_RINGBUF_OUTPUT(colo_ring, 16);

/* Log to the mismatch map and wake the control plane. */
static __always_inline void colo_event(struct colo_mismatch *event)
{
	__u64 *made = colo_live_word(COLO_LIVE_MISMATCHES);
	__u32 ix;

	event->at_ns = bpf_ktime_get_boot_ns();
	if (made && event->kind == COLO_EV_MISMATCH) {
		ix = __sync_fetch_and_add(made, 1) % COLO_MISMATCHES;
		colo_mism.update(&ix, event);
	}
	if (colo_ring.ringbuf_output(event, sizeof(*event), 0))
		colo_live_add(COLO_LIVE_EVENTS_LOST, 1);
}

static __always_inline void colo_tell(__u8 kind, __u16 reason, struct colo_flow_key *key,
				      __u8 proto, __u64 epoch)
{
	struct colo_mismatch event = {};

	event.kind = kind;
	event.reason = reason;
	event.proto = proto;
	event.epoch = epoch;
	if (key)
		event.flow = *key;
	colo_event(&event);
}

/* `made` more slots are in use: tell the control plane, if it asked or it gets tight. */
static __always_inline void colo_hold_count(struct colo_config *conf, struct colo_flow_key *key,
					    __u64 epoch, __u64 made)
{
	__u64 *held = colo_live_word(COLO_LIVE_HELD);
	__u64 *armed = colo_live_word(COLO_LIVE_HELD_ARMED);
	__u64 was;

	if (!held || !armed)
		return;
	was = __sync_fetch_and_add(held, made);
	if (was < conf->hold_high && was + made >= conf->hold_high)
		colo_tell(COLO_EV_STORE_FULL, COLO_R_STORE_FULL, key, 0, epoch);
	if (*armed && __sync_val_compare_and_swap(armed, 1, 0) == 1)
		colo_tell(COLO_EV_HELD, COLO_R_UNVERIFIED, key, 0, epoch);
}

static __always_inline void colo_plan_event(struct colo_work *work)
{
	struct colo_mismatch event = {};
	struct colo_plan *plan = &work->plan;

	event.kind = plan->event;
	event.reason = plan->event == COLO_EV_MISMATCH ? COLO_R_MISMATCH : plan->reason;
	event.proto = IPPROTO_TCP;
	event.epoch = work->now.epoch;
	event.flow = work->flow;
	event.offset = plan->offset;
	event.pvm_digest = plan->pvm_digest;
	event.svm_digest = plan->svm_digest;
	colo_event(&event);
}

/*
 * How late the SVM is: the time from holding a frame of the PVM until the SVM produced the same.
 * From these the control plane finds how long a held frame may wait before it takes a checkpoint.
 *
 * One count for each frame of the SVM that verifies a held one. A frame that the SVM produced first
 * is not late, and not counted. Soon after a load the SVM's caches are cold and it is slower: that
 * time has a row of its own.
 */

BPF_TABLE_PINNED("percpu_array", __u32, __u64, colo_late, COLO_LATES * COLO_LATE_BUCKETS,
		 COLO_PIN "/colo_late");

/* Bucket n > 0: from 2^(n-1) to 2^n units of 1,024 ns. */
static __always_inline __u32 colo_late_bucket(__u64 late)
{
	__u32 n = 0, bits;

#pragma unroll
	for (bits = 16; bits; bits >>= 1)
		if (late >> bits) {
			late >>= bits;
			n += bits;
		}
	n += late;
	return n < COLO_LATE_BUCKETS ? n : COLO_LATE_BUCKETS - 1;
}

/*
 * `held_ns`: when the frame was held that is verified now. Bucket 0 has all that was verified in
 * the tick of the kernel in which it was held (colo_link_hear). For these the clock is not read
 * again: that would cost as much as the rest of this function.
 */
static __always_inline void colo_late_count(struct colo_now *now, __u64 held_ns)
{
	__u64 *loaded = colo_live_word(COLO_LIVE_LOADED_NS), *count;
	__u32 ix = 0;

	if (!loaded)
		return;
	if ((__s64)(now->at_ns - held_ns) > 0)
		ix = colo_late_bucket((bpf_ktime_get_boot_ns() - held_ns) >> 10);
	if ((__s64)(now->at_ns - *loaded) < COLO_FRESH_NS)	/* signed: `now` may be older */
		ix += COLO_LATE_LOADED * COLO_LATE_BUCKETS;
	count = colo_late.lookup(&ix);
	if (count)
		(*count)++;
}

#endif /* COLO_EVENT_H */
