/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How late the SVM is: from the moment a frame of the PVM was held until the SVM produced the same.
 * How long the next one may wait for the SVM follows from that (control/patience.py).
 *
 * One count for each frame of the SVM that verifies a held one. A frame that the SVM produced first is
 * not late and not counted. What comes soon after a load has a row of its own: until its caches are
 * warm again the SVM is not as fast as it is usually.
 */
#ifndef COLO_LATE_H
#define COLO_LATE_H

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
 * `held_ns`: when the frame was held that is verified now. Bucket 0 is for all that came in the same
 * tick of the kernel (colo_link_hear): nobody waited there, and to read the clock once more would cost
 * as much as the rest of it.
 */
static __always_inline void colo_late_count(struct colo_now *now, __u64 held_ns)
{
	__u64 *loaded = colo_live_word(COLO_LIVE_LOADED_NS), *count;
	__u32 ix = 0;

	if (!loaded)
		return;
	if ((__s64)(now->at_ns - held_ns) > 0)
		ix = colo_late_bucket((bpf_ktime_get_boot_ns() - held_ns) >> 10);
	if ((__s64)(now->at_ns - *loaded) < COLO_FRESH_NS)	/* signed: `now` is a tick old */
		ix += COLO_LATE_LOADED * COLO_LATE_BUCKETS;
	count = colo_late.lookup(&ix);
	if (count)
		(*count)++;
}

#endif /* COLO_LATE_H */
