/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Prefix hash of a byte stream. Two VMs may cut the same stream into different segments, so
 * each side keeps a state (hash over whole blocks, unfinished block, next sequence number) and
 * digests are only compared at equal stream positions.
 *
 * The walk over a segment notes a digest at each of its stops; colo_stream.h lists and judges them.
 *
 * A loop keeps what it carries from turn to turn in map memory: the verifier then sees the same
 * state each time.
 */
#ifndef COLO_HASH_H
#define COLO_HASH_H

#include <uapi/linux/bpf.h>

#include "colo_abi.h"
#include "colo_scratch.h"
#include "colo_verifier.h"

#define COLO_START	COLO_BLOCK	/* where a stream's bytes begin in the buffer */
#define COLO_EIGHT	(8 * COLO_BLOCK)
#define COLO_HASH_TURNS	(65536 / COLO_EIGHT + COLO_STOPS + 2)
#define COLO_HASH_FIRST	64	/* in a program that has parsed the frame: some 10 KB */
#define COLO_PLAIN_MAX	(60 * COLO_EIGHT)	/* bytes of what is no stream */
#define COLO_FEW_WORDS	8	/* of a payload that is read in place */
#define COLO_FEW_FROM	256	/* where it begins at most */
#define COLO_NOWHERE	0xffffffffu
#define COLO_PHI	0x9E3779B97F4A7C15ULL

/*
 * Why the factor is not a constant: a constant takes a word's highest bit (the sign of a double) to
 * the highest bit of the product and to no other, whatever the key is. Two such differences would
 * cancel out. So the factor is the upper half of what is multiplied, and that depends on the key: a
 * known difference of two words leads to a known difference of the products with a chance of 2^-32.
 * The factor is odd, so that a zero does not make the hash forget.
 */
static __always_inline __u64 colo_mix(__u64 hash, __u64 word)
{
	hash ^= word;
	return hash * (hash >> 31 | 1);
}

/* Odd, so never 0: that means "none" in the maps. */
static __always_inline __u64 colo_digest(__u64 hash, __u64 key)
{
	return colo_mix(hash, key) | 1;
}

static __always_inline void colo_lanes_begin(__u64 *lane, __u64 key)
{
	lane[0] = key;
	lane[1] = key + COLO_PHI;
	lane[2] = key + 2 * COLO_PHI;
	lane[3] = key + 3 * COLO_PHI;
}

/* Hash whole blocks at walk->pos. The lanes do not wait for each other. */
static __always_inline void colo_walk_blocks(struct colo_walk *walk, __u64 *word, int blocks)
{
	__u64 a = walk->lane[0], b = walk->lane[1], c = walk->lane[2], d = walk->lane[3];
	int i;

#pragma unroll
	for (i = 0; i < blocks; i++) {
		a = colo_mix(a, word[4 * i]);
		b = colo_mix(b, word[4 * i + 1]);
		c = colo_mix(c, word[4 * i + 2]);
		d = colo_mix(d, word[4 * i + 3]);
	}
	walk->lane[0] = a;
	walk->lane[1] = b;
	walk->lane[2] = c;
	walk->lane[3] = d;
	walk->pos += blocks * COLO_BLOCK;
}

static __always_inline __u64 *colo_walk_at(struct colo_walk *walk, struct colo_buf *buf)
{
	return &buf->word[walk->pos / 8 & (COLO_BUF_WORDS - 1)];
}

/* The bytes between the last whole block and the stop; `word` is that block. */
static __always_inline void colo_walk_tail(struct colo_walk *walk, __u64 *word, __u32 stop)
{
	__u64 rest = stop - walk->pos, bytes;
	int i;

#pragma unroll
	for (i = 0; i < COLO_LANES; i++) {
		bytes = colo_min(rest, 8);
		rest -= bytes;
		walk->tail[i] = word[i] & ~colo_from_byte(bytes);
	}
}

/* As few multiplications behind each other as there can be. */
static __always_inline __u64 colo_lanes_digest(__u64 *lane, __u64 *tail, __u64 key)
{
	__u64 a = colo_mix(lane[0], tail[0]), b = colo_mix(lane[1], tail[1]);
	__u64 c = colo_mix(lane[2], tail[2]), d = colo_mix(lane[3], tail[3]);

	return colo_digest(colo_mix(colo_mix(a, b), colo_mix(c, d)), key);
}

/* The digest of all before `stop`. */
static __always_inline __u64 colo_walk_digest(struct colo_walk *walk, __u32 stop)
{
	__u64 at_end = (__s64)((__u64)walk->limit - stop - 1) >> 63;

	COLO_OPAQUE(at_end);
	return colo_lanes_digest(walk->lane, walk->tail, walk->key ^ (walk->fin & at_end));
}

/* Hash to `stop`, less than eight blocks away. */
static __always_inline void colo_walk_rest(struct colo_walk *walk, struct colo_buf *buf, __u32 stop)
{
	if (walk->pos + 4 * COLO_BLOCK <= stop)
		colo_walk_blocks(walk, colo_walk_at(walk, buf), 4);
	COLO_FORGET();
	if (walk->pos + 2 * COLO_BLOCK <= stop)
		colo_walk_blocks(walk, colo_walk_at(walk, buf), 2);
	COLO_FORGET();
	if (walk->pos + COLO_BLOCK <= stop)
		colo_walk_blocks(walk, colo_walk_at(walk, buf), 1);
	COLO_FORGET();
	colo_walk_tail(walk, colo_walk_at(walk, buf), stop);
}

/*
 * Hash the buffer from walk->pos to walk->limit, with a digest at each stop from walk->stop on. -1:
 * that takes more turns.
 */
static __always_inline int colo_walk_hash(struct colo_work *work, struct colo_buf *buf, int turns)
{
	struct colo_walk *walk = &work->walk;
	struct colo_stop *stop;
	int i;

#pragma nounroll
	for (i = 0; i < turns; i++) {
		COLO_FORGET();
		stop = &work->stop[walk->stop & (COLO_STOPS - 1)];
		if (walk->pos + COLO_EIGHT <= stop->at) {
			colo_walk_blocks(walk, colo_walk_at(walk, buf), 8);
			continue;
		}
		colo_walk_rest(walk, buf, stop->at);
		stop->digest = colo_walk_digest(walk, stop->at);
		if (++walk->stop >= walk->stops)
			return 0;
	}
	return -1;
}

/* Begin with the buffer. -1: another program goes on, for the verifier's sake. */
static __always_inline int colo_walk_first(struct colo_work *work, struct colo_buf *buf)
{
	work->walk.stop = 0;
	return colo_walk_hash(work, buf, COLO_HASH_FIRST);
}

/* The digest of the buffer up to walk->limit, for what is no stream. */
static __always_inline __u64 colo_walk_plain(struct colo_walk *walk, struct colo_buf *buf)
{
	int i;

#pragma nounroll
	for (i = 0; i < COLO_PLAIN_MAX / COLO_EIGHT; i++) {
		COLO_FORGET();
		if (walk->pos + COLO_EIGHT > walk->limit)
			break;
		colo_walk_blocks(walk, colo_walk_at(walk, buf), 8);
	}
	colo_walk_rest(walk, buf, walk->limit);
	return colo_walk_digest(walk, walk->limit);
}

/*
 * A payload of a few words, read where it lies in the skb's head. A helper call would cost more
 * than the copy. Each word is stored once, just as it is hashed: the hash does not wait for a load
 * that spans two stores. Before the payload, its first word holds the unfinished word of the
 * stream, or the end of the header.
 */
static __always_inline int colo_load_words(struct __sk_buff *skb, struct colo_buf *buf, __u64 from,
					   __u64 to, __u64 len)
{
	__u64 before = to & 7, last = (before + len - 1) / 8, after = (0 - before - len) & 7;
	__u64 *word = &buf->word[to / 8 & (COLO_BUF_WORDS - 1)], *at, first = *word;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 head = from - before, tail = from + len - 8;
	int i;

	if (colo_above(head, COLO_FEW_FROM) ||
	    colo_above(tail, COLO_FEW_FROM + 8 * COLO_FEW_WORDS) ||
	    colo_above(last, COLO_FEW_WORDS) || data + tail + 8 > end)
		return -1;
#pragma unroll
	for (i = 0; i < COLO_FEW_WORDS; i++) {
		at = data + head + 8 * i;
		if (i >= last || (void *)(at + 1) > end)	/* for the verifier */
			break;
		word[i] = *at;
	}
	/* It ends with the payload: behind that there may be nothing. */
	word[last] = *(__u64 *)(data + tail) >> after * 8;
	*word = (first & ~colo_from_byte(before)) | (*word & colo_from_byte(before));
	return 0;
}

/* The payload at `from`, to byte `to` of the buffer. -1: there is none, or it does not fit. */
static __always_inline int colo_load(struct __sk_buff *skb, struct colo_buf *buf, __u64 from,
				     __u64 to, __u64 len)
{
	if (colo_outside(len, 1, 65536))
		return -1;
	if (len <= 8 * COLO_FEW_WORDS && !colo_load_words(skb, buf, from, to, len))
		return 0;
	return bpf_skb_load_bytes(skb, from, (__u8 *)buf->word + to, len);
}

#endif /* COLO_HASH_H */
