/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What one packet carries from stage to stage of compare.c: parse, prepare, hash, conclude,
 * carry out.
 *
 * It lives in map memory, not on the stack, for the verifier's sake: a value read back from a
 * map is unknown again, so that all ways through a stage end in one state and the next stage is
 * looked at once. On the stack every verdict times every flag would be a state of its own, and
 * the hash loop alone would cost over a million instructions.
 */
#ifndef COLO_WORK_H
#define COLO_WORK_H

#define COLO_STOPS	48	/* digests one walk can meet */
#define COLO_WORDS	(COLO_FRAME_MAX / 8 + 1)
#define COLO_FIN_MARK	0x46494e2d636f6c6fULL	/* a stream that ended differs from one that did not */

struct colo_stop {
	__u64 digest;		/* of the other side */
	__u32 end;		/* sequence number */
	__u32 at;		/* the same as a byte position in buf */
};

/*
 * What to do with the frame in hand, decided under the flow's lock. In map memory too: on the
 * stack every verdict and reason would be a state of its own for all that follows.
 */
struct colo_plan {
	__u32 verdict;		/* enum colo_verdict */
	__u32 reason;
	__u32 drain;		/* held frames may leave now */
	__u32 lower;		/* the frame passes with `ack` and `edge` */
	__u32 ack;
	__u32 edge;
	__u32 event;		/* enum colo_event_kind, 0: none */
	__u32 offset;
	__u64 pvm_digest;
	__u64 svm_digest;
};

enum colo_walk_flag {
	COLO_W_FIN = 1,		/* the segment ends the stream */
	COLO_W_BAD = 2,		/* digests differed at `bad` */
	COLO_W_MET = 4,		/* at least one stop agreed; `met` is the last */
};

/* The turn as the programs see it, read once per packet. */
struct colo_now {
	__u64 epoch;
	__u32 phase;
	__u32 mode;
	__u32 may_release;	/* PRIMARY, OPEN, and the peer was heard */
	__u32 pad;
};

enum colo_step {		/* what the prepare stage leaves to do */
	COLO_STEP_DONE = 0,	/* the plan stands */
	COLO_STEP_HOLD = 1,	/* copy the frame to the store */
	COLO_STEP_HASH = 2,	/* hash it, then decide */
};

struct colo_work {		/* one per CPU; programs run with BH off and do not nest */
	__u64 key;
	__u64 hash;
	__u64 part;
	__u64 digest;		/* at the end of the segment */
	__u64 bad_digest;	/* ours, where the walk disagreed */
	__u32 word;		/* next word of buf */
	__u32 stop;		/* next entry of stops[] */
	__u32 stops;		/* used entries; one more holds the segment's end */
	__u32 flags;		/* enum colo_walk_flag */
	__u32 met;
	__u32 step;		/* enum colo_step */
	__u32 end;		/* sequence number after the segment */
	__u32 scale;		/* window shift, from a SYN or of the flow */
	__u32 kind;		/* enum colo_slot_kind, of a frame to be held */
	__u32 before;		/* `verified` before this segment */
	__u32 bad;		/* entry of stops[] where the walk disagreed */
	struct colo_plan plan;
	struct colo_pkt pkt;
	struct colo_now now;
	struct colo_flow_key flow;
	struct colo_stop at[COLO_STOPS + 1];
	__u64 buf[COLO_WORDS + 1];
};

BPF_PERCPU_ARRAY(colo_work, struct colo_work, 1);

#endif /* COLO_WORK_H */
