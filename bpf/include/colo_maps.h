/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one VM. All that must outlive the daemon is pinned below COLO_PIN; both
 * sources include this file and so share them. Sizes come from the configuration.
 */
#ifndef COLO_MAPS_H
#define COLO_MAPS_H

#ifndef COLO_PIN
#define COLO_PIN "/sys/fs/bpf/colo_ebpf/v1/unset"
#endif
#ifndef COLO_FLOWS
#define COLO_FLOWS 16384
#endif
#ifndef COLO_HOLD_SLOTS
#define COLO_HOLD_SLOTS 4096
#endif
#ifndef COLO_DGRAM_BUCKETS
#define COLO_DGRAM_BUCKETS 2048
#endif
#ifndef COLO_FRAME_MAX
#define COLO_FRAME_MAX 2304	/* bytes of a slot: 256 of headers, then 508 times what is needed */
#endif

struct colo_frame {
	__u8 data[COLO_FRAME_MAX];
};

BPF_TABLE_PINNED("array", __u32, struct colo_conf, colo_conf, 1, COLO_PIN "/colo_conf");
BPF_TABLE_PINNED("array", __u32, struct colo_turn, colo_turn, 1, COLO_PIN "/colo_turn");
BPF_TABLE_PINNED("array", __u32, __u64, colo_live, COLO_LIVE_WORDS, COLO_PIN "/colo_live");
BPF_TABLE_PINNED("percpu_array", __u32, struct colo_count, colo_stats,
		 COLO_PROGS * COLO_VERDICTS * COLO_REASONS, COLO_PIN "/colo_stats");
BPF_TABLE_PINNED("hash", struct colo_flow_key, struct colo_flow, colo_flows, COLO_FLOWS,
		 COLO_PIN "/colo_flows");

static __always_inline __u64 *colo_live_word(__u32 word)
{
	return colo_live.lookup(&word);
}

static __always_inline void colo_live_add(__u32 word, __s64 n)
{
	__u64 *value = colo_live_word(word);

	if (value)
		__sync_fetch_and_add(value, n);
}

#endif /* COLO_MAPS_H */
