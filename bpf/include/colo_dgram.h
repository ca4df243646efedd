/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything that is not a TCP stream: UDP, ICMP, other IP, fragments, TCP resets.
 * Compared as a multiset, without order, equal copies counted.
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
	hash = colo_mix(hash, (__u64)key->vm << 32 | key->client);
	return colo_mix(hash, (__u64)key->vm_port << 48 | (__u64)key->client_port << 32 |
			      (__u64)key->vlan << 16 | key->nic);
}

/* A TCP reset is compared by connection and sequence number; its ACK is each VM's own. */
static __always_inline int colo_is_reset(struct colo_pkt *pkt)
{
	return pkt->proto == IPPROTO_TCP && !pkt->fragment;
}

/* Prepare the digest of a datagram, or make it where there is nothing to walk. */
static __always_inline void colo_dgram_prepare(struct __sk_buff *skb, struct colo_conf *conf,
					       struct colo_work *work)
{
	struct colo_pkt *pkt = &work->pkt;
	__u32 off = pkt->ethertype == ETH_P_IP ? pkt->l4 : pkt->l3;
	__u64 hash = colo_key_hash(conf->key[0], &work->flow);
	__u64 len = pkt->end - off;

	work->step = COLO_STEP_DONE;
	work->digest = 0;
	if (colo_is_reset(pkt)) {
		hash = colo_mix(hash, 0x525354ULL << 32 | pkt->seq);
		work->digest = colo_digest(hash, 0, conf->key[1]);
		return;
	}
	hash = colo_mix(hash, (__u64)pkt->ethertype << 32 | pkt->fragment << 8 | pkt->proto);
	hash = colo_mix(hash, len);
	if (!len) {
		work->digest = colo_digest(hash, 0, conf->key[1]);
		return;
	}
	COLO_OPAQUE(len);
	if (len < 1 || len > COLO_FRAME_MAX - 8)
		return;
	if (bpf_skb_load_bytes(skb, off, work->buf, len))
		return;
	if (pkt->proto == IPPROTO_UDP && !pkt->fragment)
		work->buf[0] &= 0x0000ffffffffffffULL;	/* checksum: may not be made yet */
	work->key = conf->key[1];
	work->hash = hash;
	work->flags = 0;
	work->word = 0;
	work->stops = 0;
	work->stop = COLO_STOPS;
	work->at[COLO_STOPS].at = len;
	work->step = COLO_STEP_HASH;
}

static __always_inline struct colo_bucket *colo_dgram_bucket(struct colo_conf *conf, __u64 digest)
{
	__u32 ix = digest & (conf->dgram_buckets - 1);

	return colo_dgrams.lookup(&ix);
}

/* Has the SVM produced the same, in this epoch, not too long ago? Uses one copy up. */
static __always_inline int colo_dgram_use(struct colo_bucket *bucket, struct colo_conf *conf,
					  __u64 digest, __u64 epoch)
{
	__u64 since = bpf_ktime_get_boot_ns() - conf->dgram_timeout_ns;
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

/* Note a held datagram of the PVM. Without a way it waits for a checkpoint. */
static __always_inline void colo_dgram_wait(struct colo_bucket *bucket, __u64 digest,
					    __u64 epoch, __u32 ref)
{
	struct colo_note *note = colo_dgram_way(bucket, epoch);

	if (!note)
		return;
	note->digest = digest;
	note->at_ns = bpf_ktime_get_boot_ns();
	note->epoch = epoch;
	note->slot = ref;
	note->copies = 0;
}

/* The SVM produced it: return the slot + 1 of the PVM's held copy, or note it and return 0. */
static __always_inline __u32 colo_dgram_meet(struct colo_bucket *bucket, __u64 digest,
					     __u64 epoch)
{
	struct colo_note *same = 0, *held = 0, *note;
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
	note->at_ns = bpf_ktime_get_boot_ns();
	note->epoch = epoch;
	note->slot = 0;
	return 0;
}

#endif /* COLO_DGRAM_H */
