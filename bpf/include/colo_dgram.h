/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything that is not a TCP stream: UDP, ICMP, other IP and other protocols, fragments, TCP
 * resets. Compared as a multiset, without order, equal copies counted.
 *
 * The table is a fixed array of buckets, so nothing has to be reaped and no traffic makes it
 * grow. What a full bucket forgets is a note of the SVM: the PVM's copy then waits
 * for a checkpoint. Forgetting never releases.
 */
#ifndef COLO_DGRAM_H
#define COLO_DGRAM_H

BPF_TABLE_PINNED("array", __u32, struct colo_bucket, colo_dgrams, COLO_DGRAM_BUCKETS,
		 COLO_PIN "/colo_dgrams");

static __always_inline __u64 colo_key_hash(__u64 hash, struct colo_flow_key *key)
{
	__u64 *word = (__u64 *)key;	/* addresses; then ports and tags */

	hash = colo_mix(hash, word[0]);
	hash = colo_mix(hash, word[1]);
	hash = colo_mix(hash, word[2]);
	hash = colo_mix(hash, word[3]);
	hash = colo_mix(hash, (__u64)key->vm_port << 48 | (__u64)key->client_port << 32 |
			      (__u64)key->vlan << 16 | key->inner_vlan);
	return colo_mix(hash, key->nic);
}

/* A TCP reset is compared by connection and sequence number; its ACK is each VM's own. */
static __always_inline int colo_is_reset(struct colo_pkt *pkt)
{
	return colo_is_tcp(pkt);
}

/* The digest of a datagram: what follows the network header, with the flow it belongs to. */
static __always_inline void colo_dgram_digest(struct __sk_buff *skb, struct colo_conf *conf,
					      struct colo_work *work, struct colo_buf *buf)
{
	struct colo_walk *walk = &work->walk;
	struct colo_pkt *pkt = &work->pkt;
	__u64 hash = colo_key_hash(conf->key[0], &work->flow);
	__u64 len = pkt->end - pkt->l4;

	work->digest = 0;
	hash = colo_mix(hash, (__u64)pkt->ethertype << 32 | pkt->fragment << 8 | pkt->proto);
	if (colo_is_reset(pkt)) {
		hash = colo_mix(hash, pkt->seq);
		work->digest = colo_digest(hash, conf->key[1]);
		return;
	}
	hash = colo_mix(hash, len);
	if (!len) {
		work->digest = colo_digest(hash, conf->key[1]);
		return;
	}
	if (len > COLO_PLAIN_MAX || colo_load(skb, buf, pkt->l4, COLO_START, len))
		return;
	if (pkt->proto == IPPROTO_UDP && !pkt->fragment)	/* checksum: may not be made yet */
		buf->word[COLO_START / 8] &= 0x0000ffffffffffffULL;
	colo_lanes_begin(walk->lane, hash);
	walk->fin = 0;
	walk->pos = COLO_START;
	walk->limit = COLO_START + len;
	work->digest = colo_walk_plain(walk, buf);
}

static __always_inline struct colo_bucket *colo_dgram_bucket(struct colo_conf *conf, __u64 digest)
{
	__u32 ix = digest >> 32 & (conf->dgram_buckets - 1);	/* every digest is odd */

	return colo_dgrams.lookup(&ix);
}

/* Has the SVM produced the same, in this epoch, not too long ago? Uses one copy up. */
static __always_inline int colo_dgram_use(struct colo_bucket *bucket, struct colo_conf *conf,
					  __u64 digest, struct colo_now *now)
{
	__u64 since = now->at_ns - conf->dgram_timeout_ns, epoch = now->epoch;
	int i;

	for (i = 0; i < COLO_DGRAM_WAYS; i++) {
		struct colo_note *note = &bucket->note[i];

		if (note->digest != digest || note->slot || note->epoch != epoch)
			continue;
		if ((__s64)(note->at_ns - since) < 0) {
			note->digest = 0;
			continue;
		}
		if (--note->copies == 0)
			note->digest = 0;
		return 1;
	}
	return 0;
}

/* A way for a new note: empty or of a past epoch, else the oldest note of the SVM. */
static __always_inline struct colo_note *colo_dgram_way(struct colo_bucket *bucket, __u64 epoch)
{
	struct colo_note *oldest = 0;
	int i;

	for (i = 0; i < COLO_DGRAM_WAYS; i++) {
		struct colo_note *note = &bucket->note[i];

		if (!note->digest || note->epoch != epoch)
			return note;
		if (!note->slot && (!oldest || note->at_ns < oldest->at_ns))
			oldest = note;
	}
	return oldest;
}

/* Is an equal frame of the PVM held? */
static __always_inline int colo_dgram_waits(struct colo_bucket *bucket, __u64 digest, __u64 epoch)
{
	int i;

	for (i = 0; i < COLO_DGRAM_WAYS; i++)
		if (bucket->note[i].digest == digest && bucket->note[i].slot &&
		    bucket->note[i].epoch == epoch)
			return 1;
	return 0;
}

/* Note a held datagram of the PVM. Without a way it waits for a checkpoint. */
static __always_inline void colo_dgram_wait(struct colo_bucket *bucket, __u64 digest,
					    struct colo_now *now, __u32 ref)
{
	struct colo_note *note = colo_dgram_way(bucket, now->epoch);

	if (!note)
		return;
	note->digest = digest;
	note->at_ns = now->at_ns;
	note->epoch = now->epoch;
	note->slot = ref;
	note->copies = 0;
}

/* The SVM produced it: return the slot + 1 of the PVM's held copy, or note it and return 0. */
static __always_inline __u32 colo_dgram_meet(struct colo_bucket *bucket, __u64 digest,
					     struct colo_now *now)
{
	struct colo_note *same = 0, *held = 0, *note;
	__u64 epoch = now->epoch;
	__u32 ref;
	int i;

	for (i = 0; i < COLO_DGRAM_WAYS; i++) {
		note = &bucket->note[i];
		if (note->digest != digest || note->epoch != epoch)
			continue;
		if (!note->slot)
			same = note;
		else if (!held || note->at_ns < held->at_ns)
			held = note;
	}
	if (held) {
		ref = held->slot;
		held->digest = 0;
		held->slot = 0;
		return ref;
	}
	note = same ? same : colo_dgram_way(bucket, epoch);
	if (!note)
		return 0;
	note->copies = same ? same->copies + 1 : 1;
	note->digest = digest;
	note->at_ns = now->at_ns;
	note->epoch = epoch;
	note->slot = 0;
	return 0;
}

#endif /* COLO_DGRAM_H */
