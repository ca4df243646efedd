/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sequence numbers. The link speaks PVM numbers; the SVM picks its own for a connection opened
 * after the last checkpoint. delta = SVM number - PVM number, learnt from the SVM's SYN and the
 * first ACK of the client (passive open) or the SYN-ACK of the server (active open), which
 * acknowledges the PVM's SYN.
 *
 * Two layers. The epoch offset (SVM against PVM, secondary only) ends with its epoch: the next
 * checkpoint gives the SVM the PVM's numbers. Two slots by epoch parity, so that a turn that
 * is undone finds the old one intact. After a takeover what the last epoch taught stays in force
 * (conf->lasting_epoch) until the control plane adds it to the lasting offsets.
 *
 * The lasting offset (VM against client, colo_last) lives as long as the connection, on whichever
 * host serves, between client side and everything else: it is taken off before the frame is
 * cloned to the link and put on after the frame was compared, so that the link speaks VM numbers.
 */
#ifndef COLO_REWRITE_H
#define COLO_REWRITE_H

BPF_TABLE_PINNED("hash", struct colo_flow_key, struct colo_off, colo_offs, COLO_FLOWS,
		 COLO_PIN "/colo_offs");

BPF_TABLE_PINNED("hash", struct colo_flow_key, struct colo_lasting, colo_last, COLO_FLOWS,
		 COLO_PIN "/colo_last");

#define COLO_OFF_ISN	1
#define COLO_OFF_DELTA	2

/* The epoch whose offsets apply now; 0: none do. */
static __always_inline __u64 colo_off_epoch(struct colo_conf *conf, __u64 epoch)
{
	return conf->mode == COLO_SOLO ? conf->lasting_epoch : epoch;
}

/* The SVM sent its SYN: remember its number. A retransmission changes nothing. */
static __always_inline void colo_off_syn(struct colo_flow_key *key, __u64 epoch, __u32 isn)
{
	struct colo_off *off, blank = {};
	struct colo_off_slot *slot;

	off = colo_offs.lookup_or_try_init(key, &blank);
	if (!off)
		return;
	off->seen_ns = bpf_ktime_get_boot_ns();
	slot = &off->slot[epoch & 1];
	if (slot->epoch == epoch && slot->flags & COLO_OFF_ISN && slot->isn == isn)
		return;
	slot->epoch = epoch;
	slot->isn = isn;
	slot->delta = 0;
	slot->flags = COLO_OFF_ISN;
}

/* The delta of a connection in this epoch; `ack` teaches it if it is only half known. */
static __always_inline __u32 colo_off_delta(struct colo_flow_key *key, __u64 epoch, __u32 ack,
					    int learn)
{
	struct colo_off *off = colo_offs.lookup(key);
	struct colo_off_slot *slot;

	if (!off || !epoch)
		return 0;
	off->seen_ns = bpf_ktime_get_boot_ns();
	slot = &off->slot[epoch & 1];
	if (slot->epoch != epoch)
		return 0;
	if (learn && slot->flags == COLO_OFF_ISN) {
		slot->delta = slot->isn + 1 - ack;
		slot->flags = COLO_OFF_ISN | COLO_OFF_DELTA;
	}
	return slot->flags & COLO_OFF_DELTA ? slot->delta : 0;
}

/* Add `delta` to the 32-bit number at offset `at` of the TCP header; the checksum follows. */
static __always_inline int colo_off_apply(struct __sk_buff *skb, struct colo_pkt *pkt, __u32 at,
					  __u32 value, __u32 delta)
{
	__u32 from = bpf_htonl(value), to = bpf_htonl(value + delta);

	if (bpf_l4_csum_replace(skb, pkt->l4 + 16, from, to, 4))
		return -1;
	return bpf_skb_store_bytes(skb, pkt->l4 + at, &to, 4, 0);
}

/* A SYN begins another connection: what was known of the tuple is not about it. */
static __always_inline void colo_last_end(struct colo_flow_key *key, __u8 flags)
{
	if (flags & COLO_TCP_SYN)
		colo_last.delete(key);
}

/* Towards the VM: the ACK number, from the client's numbers to the VM's. */
static __always_inline int colo_rewrite_in(struct __sk_buff *skb, struct colo_conf *conf,
					   struct colo_pkt *pkt, __u64 epoch)
{
	struct colo_flow_key key = {};
	__u32 delta;

	colo_key_from_client(pkt, &key);
	colo_last_end(&key, pkt->flags);
	if (!(pkt->flags & COLO_TCP_ACK))
		return 0;
	delta = colo_off_delta(&key, colo_off_epoch(conf, epoch), pkt->ack,
			       conf->mode == COLO_SECONDARY);
	return delta ? colo_off_apply(skb, pkt, 8, pkt->ack, delta) : 0;
}

/* From the VM: its own sequence number. Its SYN is left as it is and teaches. */
static __always_inline int colo_rewrite_out(struct __sk_buff *skb, struct colo_conf *conf,
					    struct colo_pkt *pkt, __u64 epoch)
{
	struct colo_flow_key key = {};
	__u32 delta;

	colo_key_from_vm(pkt, &key);
	colo_last_end(&key, pkt->flags);
	if (pkt->flags & COLO_TCP_SYN) {
		if (conf->mode == COLO_SECONDARY)
			colo_off_syn(&key, epoch, pkt->seq);
		return 0;
	}
	delta = colo_off_delta(&key, colo_off_epoch(conf, epoch), 0, 0);
	return delta ? colo_off_apply(skb, pkt, 4, pkt->seq, -delta) : 0;
}

#endif /* COLO_REWRITE_H */
