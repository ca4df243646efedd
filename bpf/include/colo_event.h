/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the data plane tells the control plane, and the log of mismatches.
 */
#ifndef COLO_EVENT_H
#define COLO_EVENT_H

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
static __always_inline void colo_hold_count(struct colo_conf *conf, struct colo_flow_key *key,
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

#endif /* COLO_EVENT_H */
