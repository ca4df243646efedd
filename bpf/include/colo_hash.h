/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Prefix hash of a byte stream. Two VMs may cut the same stream into different
 * segments, so each side keeps a state (hash over whole 8-byte words, unfinished
 * word, next sequence number) and digests are only compared at equal stream positions.
 *
 * A segment is hashed in one walk. The walk stops wherever the other side has a digest
 * pending (struct colo_stop) and compares there.
 *
 * The indices of the walk are read from map memory at each turn, so that the verifier prunes.
 */
#ifndef COLO_HASH_H
#define COLO_HASH_H

static __always_inline __u64 colo_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9E3779B97F4A7C15ULL;
	return hash ^ (hash >> 29);
}

static __always_inline __u64 colo_digest(__u64 hash, __u64 part, __u64 key)
{
	hash = colo_mix(hash, part ^ key);
	hash = colo_mix(hash, key);
	return hash ? hash : 1;	/* 0 means "none" in the maps */
}

/* Hash work->buf from work->word up to the last stop, comparing at each stop before it. */
static __always_inline void colo_walk(struct colo_work *work)
{
	__u64 hash = work->hash;
	int i;

	for (i = 0; i < COLO_WORDS + COLO_STOPS + 1; i++) {
		__u64 word = work->word;
		__u64 stop = work->stop;
		__u64 part = 0, digest;
		__u32 at, rest;

		COLO_OPAQUE(word);
		COLO_OPAQUE(stop);
		if (word >= COLO_WORDS || stop > COLO_STOPS)
			break;
		at = work->at[stop].at;
		if (word * 8 + 8 <= at) {
			hash = colo_mix(hash, work->buf[word]);
			work->word = word + 1;
			continue;
		}
		rest = at & 7;
		if (rest)
			part = work->buf[word] & ((1ULL << (rest * 8)) - 1);
		digest = colo_digest(hash, part, work->key);
		if ((work->flags & COLO_W_FIN) && at == work->at[COLO_STOPS].at)
			digest ^= COLO_FIN_MARK;
		if (stop == COLO_STOPS) {
			work->part = part;
			work->digest = digest;
			break;
		}
		if (digest != work->at[stop].digest) {
			/* The hash stays right for nobody: the flow waits for a checkpoint. */
			work->flags |= COLO_W_BAD;
			work->bad = stop;
			work->bad_digest = digest;
			break;
		}
		work->flags |= COLO_W_MET;
		work->met = work->at[stop].end;
		stop++;
		work->stop = stop < work->stops ? stop : COLO_STOPS;
	}
	work->hash = hash;
}

#endif /* COLO_HASH_H */
