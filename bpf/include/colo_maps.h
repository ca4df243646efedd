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

BPF_PERCPU_ARRAY(colo_blank, struct colo_flow, 1);	/* too large for the stack */

static __always_inline struct colo_flow *colo_flow_get(struct colo_flow_key *key)
{
	struct colo_flow *flow = colo_flows.lookup(key), *blank;
	__u32 zero = 0;

	if (flow)
		return flow;
	blank = colo_blank.lookup(&zero);
	return blank ? colo_flows.lookup_or_try_init(key, blank) : 0;
}

#endif /* COLO_MAPS_H */
