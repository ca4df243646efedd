/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A client whose connection was reset, by itself or by both VMs, waits for nothing any more. Of two VMs
 * the slower one may see the client's reset, or bytes that come after the end, before it closes the
 * connection itself. Then it never says its FIN, and the PVM's would be held until a checkpoint. So
 * what is held of such a connection is dropped, and what the PVM still says is too, unless it is
 * verified.
 *
 * Dropping never releases. Were the client there after all its VM would send the bytes again, as if
 * they had been lost on the way, and they would be held until a checkpoint; the client's next segment
 * ends all this. Only a reset of the client that is where the PVM expects the next byte counts, for such
 * a one ends the connection there, too (RFC 5961, 3.2): a forged one has to know that number.
 */
#ifndef COLO_GONE_H
#define COLO_GONE_H

#define COLO_GONE_MAX	16	/* held frames that one reset drops; others wait for a checkpoint */

/* The list's first frame leaves the store, and is not sent. -1: it is just being sent. */
static __always_inline int colo_gone_drop(struct colo_flow *flow, struct colo_slot *slot, __u32 prog)
{
	__u32 len = slot->len;

	if (colo_flow_forget(flow, slot))
		return -1;
	colo_count(prog, COLO_V_DROP, COLO_R_CLIENT_GONE, len);
	return 0;
}

/* Under the flow's lock; `prog` counts what is dropped. */
static __always_inline void colo_gone_empty(struct colo_flow *flow, __u32 prog)
{
	struct colo_slot *slot;
	__u32 ix;
	int i;

	if (flow->emitter)
		return;
	for (i = 0; i < COLO_GONE_MAX; i++) {
		ix = flow->head - 1;
		slot = colo_hold.lookup(&ix);
		if (!slot || colo_gone_drop(flow, slot, prog))
			break;
	}
	ix = flow->ack_slot - 1;
	slot = colo_hold.lookup(&ix);
	if (!slot || colo_slot_claim(slot))
		return;
	flow->ack_slot = 0;
	colo_count(prog, COLO_V_DROP, COLO_R_CLIENT_GONE, slot->len);
	colo_slot_free(slot);
}

/* The client's segment says whether it is there. */
static __always_inline void colo_gone_track(struct colo_pkt *pkt, struct colo_flow *flow,
					    struct colo_flow_key *key)
{
	if (!(pkt->flags & COLO_TCP_RST)) {
		flow->c_gone = 0;
		return;
	}
	if (!(flow->flags & COLO_F_HAS_ACK) || pkt->seq != flow->p_ack)
		return;
	flow->c_gone = 1;
	if (colo_flow_lock(flow, key, COLO_LOCK_AGAIN))
		return;
	colo_gone_empty(flow, COLO_PROG_MIR_CLI);
	colo_unlock(&flow->lock);
}

#endif /* COLO_GONE_H */
