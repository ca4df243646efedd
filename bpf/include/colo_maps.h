/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one VM. All that must outlive the daemon is pinned below COLO_PIN; all
 * sources include this file and so share them. Sizes come from the configuration.
 */
#ifndef COLO_MAPS_H
#define COLO_MAPS_H

#include "colo_abi.h"

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

BPF_TABLE_PINNED("array", __u32, struct colo_config, colo_conf, 1, COLO_PIN "/colo_conf");
BPF_TABLE_PINNED("array", __u32, struct colo_turn_cell, colo_turn, 1, COLO_PIN "/colo_turn");
BPF_TABLE_PINNED("array", __u32, __u64, colo_live, COLO_LIVE_WORDS, COLO_PIN "/colo_live");
BPF_TABLE_PINNED("percpu_array", __u32, struct colo_counter, colo_stats,
		 COLO_PROGS * COLO_VERDICTS * COLO_REASONS, COLO_PIN "/colo_stats");
/* Made as connections come: what is not used takes no memory, and that is nearly all of it. */
BPF_TABLE_PINNED("hash", struct colo_flow_key, struct colo_flow, colo_flows, COLO_FLOWS,
		 COLO_PIN "/colo_flows", BPF_F_NO_PREALLOC);

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

/* The configuration of the VM. */
static __always_inline struct colo_config *colo_conf_get(void)
{
	__u32 zero = 0;

	return colo_conf.lookup(&zero);
}

/* The epoch this plane is in. */
static __always_inline __u64 colo_epoch_get(void)
{
	__u32 zero = 0;
	struct colo_turn_cell *turn = colo_turn.lookup(&zero);

	return turn ? *(volatile __u64 *)&turn->word >> 1 : 0;
}

#endif /* COLO_MAPS_H */
