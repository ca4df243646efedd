/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Locks with a bounded spin. Helpers may not be called under a bpf_spin_lock, and hashing needs
 * them. Both sides run with BH off, so that a holder is never interrupted by a waiter.
 */
#ifndef COLO_LOCK_H
#define COLO_LOCK_H

#include "colo_abi.h"

#define COLO_LOCK_AGAIN		4	/* inside a loop, where the next turn tries again */
#define COLO_LOCK_SPINS		300	/* 100 quick ones, then longer ones: about a millisecond */
#define COLO_LOCK_QUICK		100

/* Spend some time without a branch: the verifier counts branches. */
static __always_inline void colo_lock_rest(int turns)
{
	int i;

#pragma unroll
	for (i = 0; i < turns; i++)
		bpf_ktime_get_ns();
}

/*
 * A GSO frame of 64 KB is hashed, cut and copied under the lock in some 100 us; a virtual CPU that
 * holds it may be kept waiting itself. Giving up costs the connection a retransmission.
 */
static __always_inline int colo_lock(__u64 *lock, int spins)
{
	int i;

	for (i = 0; i < spins; i++) {
		if (!__sync_val_compare_and_swap(lock, 0, 1))
			return 0;
		if (spins == COLO_LOCK_AGAIN)
			colo_lock_rest(16);
		else if (i < COLO_LOCK_QUICK)
			colo_lock_rest(4);
		else
			colo_lock_rest(128);
	}
	return -1;
}

static __always_inline void colo_unlock(__u64 *lock)
{
	/* A swap, not a store: it also orders what was written under the lock. */
	__sync_val_compare_and_swap(lock, 1, 0);
}

/*
 * The kernel uses a deleted entry again at once, while another CPU may still have a pointer to it.
 * So a flow says which connection owns it, and whoever locks it compares. The number need not be
 * unique among all connections, only among those that can meet here.
 */
static __always_inline __u64 colo_flow_owner(struct colo_flow_key *key)
{
	__u64 ends = (__u64)key->client[3] << 32 | key->vm[3];
	__u64 rest = (__u64)key->client_port << 48 | (__u64)key->vm_port << 32 |
		     (__u64)key->vlan << 16 | key->nic;

	return (ends ^ key->client[2]) + rest * 0x9e3779b97f4a7c15ULL;
}

/* -1: busy, or it has become another connection's. */
static __always_inline int colo_flow_lock(struct colo_flow *flow, struct colo_flow_key *key,
					  int spins)
{
	if (colo_lock(&flow->lock, spins))
		return -1;
	if (flow->owner == colo_flow_owner(key))
		return 0;
	colo_unlock(&flow->lock);
	return -1;
}

#endif /* COLO_LOCK_H */
