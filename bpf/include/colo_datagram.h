/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything that is not a TCP stream: UDP, ICMP, other IP and other protocols, fragments, TCP
 * resets. Compared as a multiset, without order, equal copies counted.
 *
 * The table is a fixed array of buckets: nothing has to be reaped, and no traffic makes it grow. A
 * full bucket forgets a note of the SVM; the PVM's copy then waits for a checkpoint. Forgetting
 * never releases.
 */
#ifndef COLO_DATAGRAM_H
#define COLO_DATAGRAM_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_event.h"
#include "colo_hash.h"
#include "colo_hold.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_reset.h"
#include "colo_scratch.h"
#include "colo_substitute.h"
#include "colo_verifier.h"
#include "colo_xmit.h"

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

/* The digest of a datagram: what follows the network header, with the flow it belongs to. */
static __always_inline void colo_dgram_digest(struct __sk_buff *skb, struct colo_config *conf,
					      struct colo_work *work, struct colo_buf *buf)
{
	struct colo_walk *walk = &work->walk;
	struct colo_pkt *pkt = &work->pkt;
	__u64 hash = colo_key_hash(conf->key[0], &work->flow);
	__u64 len = pkt->end - pkt->l4;

	work->digest = 0;
	hash = colo_mix(hash, (__u64)pkt->ethertype << 32 | pkt->fragment << 8 | pkt->proto);
	if (colo_is_reset(pkt)) {	/* its ACK is each VM's own */
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

static __always_inline struct colo_bucket *colo_dgram_bucket(struct colo_config *conf, __u64 digest)
{
	__u32 ix = digest >> 32 & (conf->dgram_buckets - 1);	/* every digest is odd */

	return colo_dgrams.lookup(&ix);
}

/* Has the SVM produced the same, in this epoch, not too long ago? Uses one copy up. */
static __always_inline int colo_dgram_use(struct colo_bucket *bucket, struct colo_config *conf,
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

/*
 * A way for a new note: empty or of a past epoch, else the oldest note of the SVM. By its number:
 * Linux 6.1 does not follow LLVM's chains of pointers that are null or not.
 */
static __always_inline __u64 colo_dgram_way(struct colo_bucket *bucket, __u64 epoch)
{
	__u64 oldest = COLO_DGRAM_WAYS, at_ns = 0;
	int i;

	for (i = 0; i < COLO_DGRAM_WAYS; i++) {
		struct colo_note *note = &bucket->note[i];

		if (!note->digest || note->epoch != epoch)
			return i;
		if (!note->slot && (oldest == COLO_DGRAM_WAYS || note->at_ns < at_ns)) {
			oldest = i;
			at_ns = note->at_ns;
		}
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
	__u64 way = colo_dgram_way(bucket, now->epoch);
	struct colo_note *note;

	if (colo_above(way, COLO_DGRAM_WAYS - 1))
		return;
	note = &bucket->note[way];
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
	__u64 same = COLO_DGRAM_WAYS, held = COLO_DGRAM_WAYS, epoch = now->epoch, at_ns = 0, at;
	struct colo_note *note;
	__u32 ref;
	int i;

	for (i = 0; i < COLO_DGRAM_WAYS; i++) {
		note = &bucket->note[i];
		if (note->digest != digest || note->epoch != epoch)
			continue;
		if (!note->slot) {
			same = i;
		} else if (held == COLO_DGRAM_WAYS || note->at_ns < at_ns) {
			held = i;
			at_ns = note->at_ns;
		}
	}
	if (!colo_above(held, COLO_DGRAM_WAYS - 1)) {
		note = &bucket->note[held];
		ref = note->slot;
		note->digest = 0;
		note->slot = 0;
		return ref;
	}
	at = same < COLO_DGRAM_WAYS ? same : colo_dgram_way(bucket, epoch);
	if (colo_above(at, COLO_DGRAM_WAYS - 1))
		return 0;
	note = &bucket->note[at];
	note->copies = same < COLO_DGRAM_WAYS ? note->copies + 1 : 1;
	note->digest = digest;
	note->at_ns = now->at_ns;
	note->epoch = epoch;
	note->slot = 0;
	return 0;
}

/*
 * The way of a frame that is not part of a TCP stream: it is held by its digest, and its twin
 * carries it out. Resets go this way, and so do frames that are not compared.
 */

/* Hold a frame outside any flow. Returns slot + 1, or 0. */
static __always_inline __u32 colo_dgram_hold(struct __sk_buff *skb, struct colo_config *conf,
					     struct colo_work *work)
{
	__u32 ref = colo_hold_alloc(conf), ix = ref - 1;
	struct colo_slot *slot = colo_hold.lookup(&ix);
	struct colo_frame *frame = colo_frames.lookup(&ix);
	struct colo_pkt *pkt = &work->pkt;
	struct colo_copy copy = { .head = pkt->l4, .from = pkt->l4 };

	if (!ref || !slot || !frame)
		return 0;
	copy.len = skb->len - pkt->l4;
	if (colo_hold_copy(skb, frame, &copy)) {
		slot->state = COLO_SLOT_FREE;
		return 0;
	}
	if (colo_is_tcp(pkt))
		colo_hold_sum(frame, pkt, copy.tag, pkt->end - pkt->l4, IPPROTO_TCP);
	else if (colo_is_ip(pkt) && pkt->proto == IPPROTO_UDP && !pkt->fragment)
		colo_hold_sum(frame, pkt, copy.tag, pkt->end - pkt->l4, IPPROTO_UDP);
	slot->flow = work->flow;
	slot->kind = COLO_SLOT_DGRAM;
	slot->digest = work->digest;
	slot->tcp_off = 0;
	slot->end = 0;
	slot->next = 0;
	slot->len = copy.head + copy.tag + copy.len;
	colo_hold_count(conf, &slot->flow, work->now.epoch,
			colo_hold_publish(slot, work->now.epoch, work->now.at_ns));
	return ref;
}

/* `reset`: of a TCP connection. */
static __always_inline int colo_pvm_dgram(struct __sk_buff *skb, struct colo_config *conf,
					  struct colo_work *work, int reset)
{
	struct colo_bucket *bucket = colo_dgram_bucket(conf, work->digest);
	struct colo_now *now = &work->now;
	__u32 ref;

	if (!work->digest || !bucket)
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_DROP, COLO_R_TOO_BIG);
	if (colo_lock(&bucket->lock, COLO_LOCK_SPINS))
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_DROP, COLO_R_BUSY);
	if (now->may_release && colo_dgram_use(bucket, conf, work->digest, now)) {
		colo_unlock(&bucket->lock);
		if (reset)
			colo_reset_over(work, COLO_PROG_CMP_PVM);
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_PASS, COLO_R_VERIFIED);
	}
	if (reset && colo_dgram_waits(bucket, work->digest, now->epoch)) {
		colo_unlock(&bucket->lock);
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_DROP, COLO_R_HELD_AGAIN);
	}
	ref = colo_dgram_hold(skb, conf, work);
	if (ref && now->phase == COLO_OPEN)
		colo_dgram_wait(bucket, work->digest, now, ref);
	colo_unlock(&bucket->lock);
	if (ref)
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_HOLD,
				   now->phase == COLO_OPEN ? COLO_R_UNVERIFIED : COLO_R_TURNING);
	colo_tell(COLO_EV_STORE_FULL, COLO_R_STORE_FULL, &work->flow, work->pkt.proto, now->epoch);
	return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_DROP, COLO_R_STORE_FULL);
}

static __always_inline int colo_svm_dgram(struct __sk_buff *skb, struct colo_config *conf,
					  struct colo_work *work, int reset)
{
	struct colo_bucket *bucket = colo_dgram_bucket(conf, work->digest);
	struct colo_slot *slot;
	__u32 ref, ix;
	int whole;

	if (!work->digest || !bucket)
		return colo_finish(skb, COLO_PROG_CMP_SVM, COLO_V_DROP, COLO_R_TOO_BIG);
	if (colo_lock(&bucket->lock, COLO_LOCK_SPINS))
		return colo_finish(skb, COLO_PROG_CMP_SVM, COLO_V_DROP, COLO_R_BUSY);
	ref = work->now.may_release ? colo_dgram_meet(bucket, work->digest, &work->now) : 0;
	colo_unlock(&bucket->lock);
	if (!ref) {
		if (reset)
			colo_svm_reset(conf, work);
		return colo_finish(skb, COLO_PROG_CMP_SVM, COLO_V_NOTE, COLO_R_AHEAD);
	}
	ix = ref - 1;
	slot = colo_hold.lookup(&ix);
	/* The slot may have been flushed and used again since it was noted. */
	if (!slot || slot->digest != work->digest || slot->epoch != work->now.epoch ||
	    colo_slot_claim(slot))
		return colo_finish(skb, COLO_PROG_CMP_SVM, COLO_V_DROP, COLO_R_OLD);
	colo_count(COLO_PROG_CMP_SVM, COLO_V_CARRY, COLO_R_CARRIED, skb->len);
	colo_late_count(&work->now, slot->at_ns);
	if (reset)
		colo_reset_over(work, COLO_PROG_CMP_SVM);
	whole = !colo_whole_dgram(skb, work, slot, ix);
	if (!whole && (colo_carrier_ready(skb) || colo_emit(skb, conf, ix, slot, 0))) {
		colo_slot_orphan(slot);
		return colo_finish(skb, COLO_PROG_CMP_SVM, COLO_V_HOLD, COLO_R_EMIT_FAILED);
	}
	colo_slot_free(slot);
	colo_live_add(COLO_LIVE_CARRIED, 1);
	return whole ? colo_send_last(skb, conf, work->pkt.nic) : TC_ACT_SHOT;
}

/* ARP and the like: nobody's stream. The PVM's passes while the peer is heard. */
static __always_inline int colo_pvm_neighbour(struct __sk_buff *skb, struct colo_config *conf,
					      struct colo_work *work)
{
	struct colo_now *now = &work->now;

	if (now->may_release)
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_PASS, COLO_R_NEIGHBOUR);
	if (now->mode == COLO_PRIMARY && now->phase == COLO_OPEN)
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_DROP, COLO_R_LINK_SILENT);
	work->digest = 0;
	if (!colo_dgram_hold(skb, conf, work))
		return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_DROP, COLO_R_STORE_FULL);
	return colo_finish(skb, COLO_PROG_CMP_PVM, COLO_V_HOLD, COLO_R_TURNING);
}

#endif /* COLO_DATAGRAM_H */
