/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything C and Python both see: the values in the maps and what their
 * numbers mean. colo_ebpf/datapath/bpf/abi.py mirrors this file; a test compiles it
 * and compares every size, offset and enumerator.
 *
 * Rules: fixed-width members, explicit padding, numbers are never reused. A change of
 * layout raises COLO_ABI_VERSION, which is part of the pin path.
 */
#ifndef COLO_ABI_H
#define COLO_ABI_H

#include <linux/types.h>

#define COLO_ABI_VERSION	10

#define COLO_EPOCH_NONE		0	/* matches nothing, on the link as in the cell */
#define COLO_TURNING_BIT	1ULL	/* turn word = epoch << 1 | TURNING */
#define COLO_MARK_RELEASED	0xC0100001u	/* clones that enter the host as if from the tap */
#define COLO_MARK_CARRIER	0xC0100100u	/* a carrier in the delay line; plus its NIC */
#define COLO_BEACON_ETHERTYPE	0x88B5	/* IEEE 802 local experimental 1 */
#define COLO_LEAVE_ETHERTYPE	0x88B6	/* IEEE 802 local experimental 2 */
#define COLO_HOLD_PART		256	/* slots of a part of the hold store */
#define COLO_FLUSH_SLOTS	64	/* of them that a run of colo_flush takes */
#define COLO_PARK_CUTS		8	/* segments of the shortest frame that is parked */
#define COLO_BOUNDS		64	/* pending SVM boundaries of a flow, a power of two */
#define COLO_LANES		4	/* 64-bit words of a hash block, each hashed by itself */
#define COLO_NICS		8	/* of one VM; the low bits of the VNI say which */
#define COLO_DGRAM_WAYS		8	/* notes in one bucket of the datagram table */
#define COLO_NO_SCALE		255	/* window shift of a flow whose SYN was not seen */
#define COLO_MISMATCHES		256	/* entries of the mismatch log, a ring */
#define COLO_LATE_BUCKETS	32	/* of lateness, each twice as long as the one before */
#define COLO_FRESH_NS		(1LL << 29)	/* after a load the SVM's caches are cold */

/* What the data plane does with the frames of the local VM. */
enum colo_mode {
	COLO_WITHHOLD = 0,	/* nothing leaves, nothing is stored: the safe default */
	COLO_PAIRING = 1,	/* compared and held, nothing released */
	COLO_PRIMARY = 2,	/* verified frames leave, the rest is held */
	COLO_SECONDARY = 3,	/* frames go over the link, none to the client side */
	COLO_SOLO = 4,		/* everything leaves */
};

enum colo_phase {
	COLO_OPEN = 0,
	COLO_TURNING = 1,	/* every frame of the PVM is held */
};

/* Why the data plane wakes the control plane. */
enum colo_event_kind {
	COLO_EV_MISMATCH = 1,
	COLO_EV_HELD = 2,
	COLO_EV_STORE_FULL = 3,
	COLO_EV_EPOCH_AHEAD = 4,
	COLO_EV_MISSED_INPUT = 5,
	COLO_EV_SVM_RESET = 6,
	COLO_EV_GAP = 7,
};

/* The programs, as counted. */
enum colo_prog {
	COLO_PROG_CMP_PVM = 0,	/* compare.c, tap ingress of the primary */
	COLO_PROG_CMP_SVM = 1,	/* compare.c, link ingress of the primary */
	COLO_PROG_FLUSH = 2,	/* compare.c, run by the control plane */
	COLO_PROG_MIR_CLI = 3,	/* mirror.c, tap egress */
	COLO_PROG_MIR_LINK = 4,	/* mirror.c, link ingress of the secondary */
	COLO_PROG_MIR_SVM = 5,	/* mirror.c, tap ingress of the secondary */
	COLO_PROG_BEACON = 6,	/* upkeep.c, run by the control plane */
	COLO_PROG_LAST_IN = 7,	/* lasting.c, tap egress, before MIR_CLI */
	COLO_PROG_LAST_OUT = 8,	/* lasting.c, tap ingress, after the others */
	COLO_PROG_DRAIN = 9,	/* compare.c, called by CMP_PVM and CMP_SVM; counts held frames */
	COLO_PROG_AGE = 10,	/* upkeep.c, run by the control plane; counts entries */
	COLO_PROG_ENTER = 11,	/* compare.c, called by CMP_PVM and CMP_SVM */
	COLO_PROG_FAREWELL = 12,	/* upkeep.c, run by the control plane */
	COLO_PROG_PARK = 13,	/* compare.c, behind the delay line */
	COLO_PROGS = 14,
};

enum colo_verdict {
	COLO_V_PASS = 0,	/* goes on in the host's stack */
	COLO_V_DROP = 1,	/* ends here, nothing kept */
	COLO_V_HOLD = 2,	/* ends here, kept in the hold store */
	COLO_V_LINK = 3,	/* sent over the link (itself or a clone) */
	COLO_V_DELIVER = 4,	/* redirected to the VM's tap */
	COLO_V_NOTE = 5,	/* ends here, its digest is kept */
	COLO_V_CARRY = 6,	/* ends here, its buffer carried held frames out */
	COLO_VERDICTS = 7,
};

/* Why. One number for one reason, whatever program counts it. */
enum colo_reason {
	COLO_R_NONE = 0,
	COLO_R_SOLO = 1,		/* the VM has no replica */
	COLO_R_RELEASED = 2,		/* our own clone on its way to the client side */
	COLO_R_VERIFIED = 3,		/* the other side produced the same before */
	COLO_R_OLD = 4,			/* bytes verified, or in the checkpoint, before */
	COLO_R_ACK = 5,			/* an ACK alone, for bytes that both VMs have */
	COLO_R_ACK_FLOOR = 6,		/* an ACK alone, for bytes that the SVM may not have */
	COLO_R_UNVERIFIED = 7,		/* the other side has not produced it yet */
	COLO_R_TURNING = 8,		/* a checkpoint is under way: all waits */
	COLO_R_ORDER = 9,		/* verified, waits behind held frames of its flow */
	COLO_R_HELD_AGAIN = 10,		/* retransmission of bytes that are held */
	COLO_R_GAP = 11,		/* bytes before it were never seen */
	COLO_R_STORE_FULL = 12,		/* no slot in the hold store */
	COLO_R_TABLE_FULL = 13,		/* no room in the flow table */
	COLO_R_BUSY = 14,		/* the flow stayed locked by the other CPU */
	COLO_R_MALFORMED = 15,		/* lengths that do not fit together */
	COLO_R_LINK_SILENT = 16,	/* the peer was not heard within the link timeout */
	COLO_R_NEIGHBOUR = 17,		/* ARP, ND, IGMP, LLDP: not compared */
	COLO_R_WITHHELD = 18,		/* the VM is entitled to nothing */
	COLO_R_TOO_BIG = 19,		/* larger than a slot, or GSO where offloads are off */
	COLO_R_BEACON = 20,		/* the peer's plane is alive */
	COLO_R_NOT_OURS = 21,		/* another VNI or tunnel source */
	COLO_R_STALE_EPOCH = 22,	/* produced in a past epoch */
	COLO_R_EPOCH_AHEAD = 23,	/* produced in an epoch we have not turned to */
	COLO_R_NO_FLOW = 24,		/* SVM output on a flow the PVM does not have */
	COLO_R_NOT_ANCHORED = 25,	/* flow waits for the next proven turn */
	COLO_R_MISMATCH = 26,		/* both sides differ at the same place */
	COLO_R_FLUSHED = 27,		/* contained in a loaded checkpoint, or solo */
	COLO_R_NO_PAIR = 28,		/* no pairing: nothing goes over the link */
	COLO_R_INPUT = 29,		/* client's frame, cloned to the secondary */
	COLO_R_CLONE_FAILED = 30,	/* the link device refused the clone */
	COLO_R_REWRITTEN = 31,		/* sequence numbers translated */
	COLO_R_PLAIN = 32,		/* nothing to translate */
	COLO_R_NO_CONF = 33,		/* configuration map empty: safe verdict */
	COLO_R_CARRIED = 34,		/* completed frames that were held */
	COLO_R_ACK_RAISED = 35,		/* raised the floor, nothing waited for it */
	COLO_R_AHEAD = 36,		/* SVM output ahead of the PVM's */
	COLO_R_EMIT_FAILED = 37,	/* the tap refused a clone; the frame stays held */
	COLO_R_PART = 38,		/* the verified part of a held frame */
	COLO_R_ENDED = 39,		/* a connection that is over, or idle for long */
	COLO_R_FAREWELL = 40,		/* the peer's plane leaves the pairing */
	COLO_R_SAID_AGAIN = 41,		/* what the SVM said last, once it serves alone */
	COLO_R_WHOLE = 42,		/* held frames, as the SVM's own frame under their header */
	COLO_R_PARKED = 43,		/* in the delay line: not copied, looked at again soon */
	COLO_R_CLIENT_GONE = 44,	/* its connection was reset: nobody waits for it */
	COLO_R_RUN = 45,		/* a run of the daemon's, not a packet */
	COLO_R_POSES = 46,		/* of our EtherTypes, and not of a data plane */
	COLO_R_WRONG_MAC = 47,		/* the guest's, from an address that is not its own */
	COLO_REASONS = 64,		/* slots of the counter table, not a reason */
};

/*
 * Named words of colo_live; the data plane owns all but HELD_ARMED, BEAT_UNTIL, LOADED and HEARD's
 * reset.
 */
enum colo_live_index {
	COLO_LIVE_HEARD_NS = 0,		/* last frame of the peer's plane */
	COLO_LIVE_HOLD_HEAD = 1,	/* slots handed out since the maps were made */
	COLO_LIVE_HELD = 2,		/* slots in use */
	COLO_LIVE_HELD_ARMED = 3,	/* 1: tell of the next held frame */
	COLO_LIVE_MISMATCHES = 4,	/* mismatches since the maps were made */
	COLO_LIVE_EVENTS_LOST = 5,	/* ring buffer was full */
	COLO_LIVE_CARRIED = 6,		/* held frames released by a carrier */
	COLO_LIVE_FLOWS = 7,		/* entries of colo_flows */
	COLO_LIVE_BEAT_NS = 8,		/* this plane's last beacon */
	COLO_LIVE_BEAT_UNTIL_NS = 9,	/* it beats by itself until then; the daemon's */
	COLO_LIVE_LOADED_NS = 10,	/* the SVM's last load was over; the daemon's */
	COLO_LIVE_WORDS = 11,
};

struct colo_config {		/* colo_conf[0], written by user space */
	__u64 key[2];		/* of the stream hash; random, made with the maps */
	__u64 link_timeout_ns;
	__u64 dgram_timeout_ns;	/* an SVM-only note is forgotten after this */
	__u64 lasting_epoch;	/* offsets learnt in this epoch outlived a takeover; 0: none */
	__u32 mode;		/* enum colo_mode */
	__u32 tap_ifindex[COLO_NICS];
	__u32 link_ifindex;
	__u32 vni;		/* of the pairing, a multiple of COLO_NICS; 0: none */
	__u32 tunnel_flags;	/* BPF_F_TUNINFO_IPV6, or 0 */
	__u32 local_ip[4];	/* both as struct bpf_tunnel_key has them: */
	__u32 peer_ip[4];	/* IPv4 in host order in the first word, IPv6 in network order */
	__u32 hold_slots;	/* a power of two */
	__u32 hold_high;	/* slots in use that make a STORE_FULL event */
	__u32 dgram_buckets;	/* a power of two */
	__u32 lasting;		/* entries of colo_last; 0: nobody needs to look */
	__u32 park_ifindex;	/* where the delay line begins; 0: there is none */
	__u32 pad;
};

struct colo_turn_cell {		/* colo_turn[0]: one 64-bit word, written whole */
	__u64 word;
};

struct colo_flow_key {
	__u32 vm[4];		/* addresses and ports in network order; IPv4 as ::ffff:a.b.c.d */
	__u32 client[4];
	__u16 vm_port;
	__u16 client_port;
	__u16 vlan;		/* host order, 0: untagged */
	__u16 inner_vlan;	/* of a frame with two tags */
	__u16 nic;
	__u16 pad;
};

enum colo_flow_flag {
	COLO_F_ANCHORED = 1,	/* both sides hash from `anchor` */
	COLO_F_HAS_HIGH = 2,
	COLO_F_HAS_ACK = 4,	/* p_ack is meant */
	COLO_F_HAS_FLOOR = 8,
	COLO_F_HAS_EDGE = 16,	/* s_edge is meant */
	COLO_F_SVM_SYN = 64,	/* the SVM sent its SYN (s_syn_ack) in this epoch */
	COLO_F_PVM_SYN = 128,	/* isn is meant */
	COLO_F_PVM_SCALE = 256,	/* p_scale is meant */
	COLO_F_BAD = 512,	/* mismatch in this epoch: nothing more verifies */
	COLO_F_LOST = 1024,	/* a frame was hashed and not stored */
	COLO_F_PVM_FIN = 2048,
	COLO_F_OVER = 4096,	/* both reset it, or the PVM did and a checkpoint has it */
	COLO_F_RESET = 8192,	/* the PVM reset the connection */
	COLO_F_SVM_GAP = 16384,	/* a segment of the SVM was lost in this epoch: told */
};

struct colo_side {		/* one VM's outbound stream since the anchor */
	__u64 lane[COLO_LANES];	/* over the whole blocks */
	__u64 part[COLO_LANES];	/* bytes after them, the rest zero */
	__u32 next;		/* sequence number after the last hashed byte */
	__u32 pad;
};

struct colo_bound {		/* where a segment of the SVM ended, ahead of the PVM */
	__u64 digest;
	__u32 end;
	__u32 pad;
};

struct colo_flow {		/* colo_flows: TCP, primary's side */
	__u64 lock;		/* of all below; helpers are called without it */
	__u64 emitter;		/* 1: some CPU is sending held frames of this flow */
	__u64 owner;		/* whose it is, of the key: an entry may be used again */
	__u64 epoch;		/* the fields below are of this epoch */
	__u64 seen_ns;
	__u64 c_acked_ns;	/* when the client acknowledged something new */
	__u64 parked_ns;	/* when a frame was parked last */
	struct colo_side pvm;
	struct colo_side svm;
	__u32 flags;		/* enum colo_flow_flag */
	__u32 anchor;
	__u32 verified;		/* bytes before it: both sides produced them */
	__u32 floor;		/* no ACK beyond it leaves */
	__u32 p_high;		/* highest sequence number the PVM had produced */
	__u32 p_ack;		/* highest ACK the PVM had produced */
	__u32 s_edge;		/* right edge of the SVM's window */
	__u32 c_ack;		/* the client's highest ACK */
	__u32 isn;		/* of the PVM */
	__u32 s_syn_ack;	/* ACK number of the SVM's SYN (0 for a bare SYN) */
	__u32 s_isn;		/* of the SVM's SYN, in its own numbers */
	__u32 p_offer;		/* options of the SYNs, as one number */
	__u32 s_offer;
	__u32 head;		/* held frames, slot + 1; 0: none */
	__u32 tail;
	__u32 held;
	__u32 ack_slot;		/* the pending pure ACK, slot + 1; 0: none */
	__u32 unmet;		/* first held frame beyond svm.next, slot + 1; 0: none */
	__u32 first_bound;	/* bound[] is a ring: its oldest entry */
	__u32 bounds;		/* used entries of bound[] */
	__u32 stride;		/* SVM ends to one entry, a power of two; 0: one */
	__u32 strode;		/* of them in the newest entry */
	__u32 gen;		/* connections on this tuple; held frames carry it */
	__u8 p_scale;
	__u8 s_scale;
	__u8 s_resends;		/* of bytes the client acknowledged, this epoch */
	__u8 more;		/* 1: a carrier could not take all; the flow's next frame goes on */
	__u32 c_known;		/* 1: c_ack is meant; not in `flags`: mirror.c takes no lock */
	__u32 unparked;		/* so many long frames are held without being parked */
	__u32 rounds;		/* its first frame has gone through the delay line, in vain */
	__u32 svm_reset;	/* the SVM reset the connection, the PVM did not: slot + 1; 0: no */
	__u32 c_gone;		/* 1: the client waits for nothing; apart from flags, as c_known */
	__u32 pad;
	struct colo_bound bound[COLO_BOUNDS];
};

/* Which yardstick a lateness is measured with: rows of colo_late. */
enum colo_late_row {
	COLO_LATE_USUAL = 0,
	COLO_LATE_LOADED = 1,	/* within COLO_FRESH_NS of a load: its caches are cold */
	COLO_LATES = 2,
};

enum colo_slot_state {
	COLO_SLOT_FREE = 0,
	COLO_SLOT_FILLING = 1,
	COLO_SLOT_HELD = 2,
	COLO_SLOT_LEAVING = 3,
};

enum colo_slot_kind {
	COLO_SLOT_STREAM = 1,	/* in its flow's list */
	COLO_SLOT_ACK = 2,	/* its flow's pending ACK */
	COLO_SLOT_DGRAM = 3,	/* found by its digest */
	COLO_SLOT_SAID = 4,	/* the secondary's: said over the link, not counted as held */
	COLO_SLOT_PARKED = 5,	/* in its flow's list; the frame itself is in the delay line */
	COLO_SLOT_RESET = 6,	/* no frame: a reset of the SVM that the PVM has not sent yet */
};

enum colo_line {		/* queues of the delay line, as HTB's class ids (skb->priority) */
	COLO_LINE_FIRST = 0x10001,	/* nothing else of its flow may leave before it */
	COLO_LINE_LATE = 0x10002,	/* its flow's first has been looked at for long */
	COLO_LINE_NEW = 0x10003,
	COLO_LINE_BEAT = 0x10004,	/* one beacon in a heartbeat */
};

struct colo_slot {		/* colo_hold: what is known of a held frame */
	__u64 state;		/* enum colo_slot_state; 64 bits for compare-and-swap */
	__u64 epoch;		/* its VM produced it in */
	__u64 at_ns;
	__u64 digest;		/* of the PVM's stream at `end`, or of the datagram; 0: unknown */
	struct colo_flow_key flow;
	__u32 kind;		/* enum colo_slot_kind */
	__u32 end;		/* sequence number after the frame */
	__u32 next;		/* in its flow's list, slot + 1 */
	__u32 len;		/* bytes of the frame, from its Ethernet header */
	__u32 tcp_off;		/* of the TCP header; 0: none */
	__u32 gen;		/* of its flow when it was held */
	__u32 ack;		/* the PVM's own ACK number: what left may be lower */
	__u32 edge;		/* right edge of the window the PVM meant */
	__u32 scale;		/* window shift, COLO_NO_SCALE: unknown */
	__u32 start;		/* sequence number of its payload */
	__u32 part;		/* payload before it has left already */
	__u32 l3_off;		/* of the IP header */
	__u32 data_off;		/* of the payload */
	__u32 bytes;		/* of payload; `end` may count a FIN, `len` padding */
};

struct colo_note {		/* one way of a datagram bucket */
	__u64 digest;		/* 0: empty */
	__u64 at_ns;
	__u64 epoch;
	__u32 slot;		/* a held PVM datagram, slot + 1; 0: an SVM note */
	__u32 copies;		/* equal SVM datagrams nobody has used yet */
};

struct colo_bucket {		/* colo_dgrams[upper half of the digest, mod buckets] */
	__u64 lock;
	struct colo_note note[COLO_DGRAM_WAYS];
};

enum colo_off_flag {
	COLO_OFF_ISN = 1,	/* isn is meant */
	COLO_OFF_DELTA = 2,	/* delta is meant */
	COLO_OFF_TS_ISN = 4,	/* ts_isn is meant */
	COLO_OFF_TS_DELTA = 8,	/* ts_delta is meant */
	COLO_OFF_TS_SENT = 16,	/* ts_sent is meant */
	COLO_OFF_TS_SEEN = 32,	/* ts_seen is meant */
};

struct colo_off_slot {		/* what one epoch taught of a connection's offsets */
	__u64 epoch;
	__u32 isn;		/* of the SVM's SYN */
	__u32 delta;		/* SVM number - PVM number */
	__u32 flags;		/* enum colo_off_flag */
	__u32 ts_isn;		/* TSval of the SVM's SYN */
	__u32 ts_delta;		/* SVM's TSval - PVM's */
	__u32 ts_sent;		/* highest TSval of the SVM */
	__u32 ts_seen;		/* highest TSecr of the client, in the PVM's clock */
	__u32 pad;
};

struct colo_off {		/* colo_offs: TCP, secondary's side */
	struct colo_off_slot slot[2];	/* by epoch mod 2: an undone turn finds the old one */
};

struct colo_lasting {		/* colo_last: TCP, whichever host serves */
	__u64 seen_ns;
	__u32 delta;		/* VM number - client's number, for the connection's life */
	__u32 ts_delta;		/* the same of its timestamps */
};

struct colo_mismatch {		/* colo_mism[n mod COLO_MISMATCHES] */
	__u64 at_ns;
	__u64 epoch;
	__u64 pvm_digest;
	__u64 svm_digest;
	struct colo_flow_key flow;
	__u32 offset;		/* sequence number where the digests were taken */
	__u16 reason;		/* enum colo_reason */
	__u8 kind;		/* enum colo_event_kind */
	__u8 proto;
	__u32 pad;
};

struct colo_counter {		/* colo_stats[prog][verdict][reason], one per CPU */
	__u64 packets;
	__u64 bytes;
};

#endif /* COLO_ABI_H */
