/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The way of a frame that is not a TCP stream's: held by its digest, carried out by its twin. Resets
 * are among them, and what nobody compares.
 */
#ifndef COLO_OTHER_H
#define COLO_OTHER_H

/* Hold a frame outside any flow. Returns slot + 1, or 0. */
static __always_inline __u32 colo_dgram_hold(struct __sk_buff *skb, struct colo_conf *conf,
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
static __always_inline int colo_pvm_dgram(struct __sk_buff *skb, struct colo_conf *conf,
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

static __always_inline int colo_svm_dgram(struct __sk_buff *skb, struct colo_conf *conf,
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
static __always_inline int colo_pvm_neighbour(struct __sk_buff *skb, struct colo_conf *conf,
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

#endif /* COLO_OTHER_H */
