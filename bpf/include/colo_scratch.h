/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the functions of the compare programs hand on for one packet: parse, prepare, hash,
 * conclude, carry out.
 *
 * It lives in map memory, not on the stack, for the verifier's sake: a value read back from a
 * map is unknown again, so that all ways through a function end in one state and the next one is
 * looked at once. On the stack every verdict times every flag would be a state of its own, and
 * the hash loop alone would cost over a million instructions.
 */
#ifndef COLO_SCRATCH_H
#define COLO_SCRATCH_H

#include "colo_abi.h"
#include "colo_maps.h"
#include "colo_packet.h"

#ifndef COLO_CPUS
#define COLO_CPUS	64
#endif
#define COLO_CUTS	64	/* slots one GSO frame may fill; a power of two */
#define COLO_STOPS	128	/* stops of one walk, a power of two: cuts, boundaries, the end */
#define COLO_BLOCK	(COLO_LANES * 8)	/* bytes the hash takes at once */
#define COLO_BUF_WORDS	16384	/* a power of two, above what 64 KB need */
#define COLO_FIN_MARK	0x46494e2d636f6c6fULL	/* sets an ended stream apart */

/*
 * What to do with the frame in hand, decided under the flow's lock. In map memory, as said above.
 */
struct colo_plan {
	__u32 verdict;		/* enum colo_verdict */
	__u32 reason;
	__u32 drain;		/* held frames may leave now */
	__u32 part;		/* even a part of one: the SVM resends, it gets no further */
	__u32 lower;		/* the frame passes with `ack` and `edge` */
	__u32 ack;
	__u32 edge;
	__u32 event;		/* enum colo_event_kind, 0: none */
	__u32 offset;
	__u32 done;		/* nothing else of the flow may leave now */
	__u32 whole;		/* the SVM's frame is what a row of held frames is */
	__u32 leaves;		/* it has been made to leave in their place, and has not yet */
	__u64 pvm_digest;
	__u64 svm_digest;
};

/* The turn as the programs see it, read once per packet. */
struct colo_now {
	__u64 epoch;
	__u64 at_ns;		/* boot time: reading the clock costs as much as a look-up */
	__u32 phase;
	__u32 mode;
	__u32 may_release;	/* PRIMARY, OPEN, and the peer was heard */
	__u32 heard;		/* within the link timeout */
};

enum colo_step {		/* what prepare leaves to do */
	COLO_STEP_DONE = 0,	/* the plan stands */
	COLO_STEP_HOLD = 1,	/* copy the frame to the store */
	COLO_STEP_HASH = 2,	/* hash it, then decide */
};

struct colo_stop {		/* a place where a walk makes a digest; see colo_stream.h */
	__u64 digest;
	__u64 other;		/* the other side's digest there; 0: none */
	__u32 at;		/* as a position in the buffer */
	__u32 cut;		/* it is the end of that cut, counted from 1; 0: of none */
};

/* The walk over the bytes of a segment. Positions are bytes in the buffer. */
struct colo_walk {
	__u64 key;
	__u64 fin;		/* COLO_FIN_MARK if the segment ends the stream */
	__u64 lane[COLO_LANES];
	__u64 tail[COLO_LANES];	/* bytes between the last whole block and the stop, the rest zero */
	__u32 pos;		/* hashed up to here, a multiple of COLO_BLOCK */
	__u32 limit;		/* end of the segment */
	__u32 base;		/* sequence number of the buffer's first byte */
	__u32 stops;		/* used entries of stop[]; the last one's place is `limit` */
	__u32 stop;		/* where the walk stands */
	__u32 bound;		/* PVM: boundaries passed */
	__u32 held;		/* SVM: first held frame not passed, slot + 1 */
	__u32 cut;		/* PVM: next cut */
	__u32 from;		/* sequence number where the walk begins */
	__u32 met;		/* the last stop where both sides agreed; `from`: there was none */
	__u32 bad;		/* stop where they differed, counted from 1; 0: none */
	__u32 last;		/* sequence number of the last held frame's end listed */
};

struct colo_work {		/* one per CPU; programs run with BH off and do not nest */
	struct colo_walk walk;
	__u64 digest;		/* of a datagram */
	__u32 step;		/* enum colo_step */
	__u32 caller;		/* COLO_CALL_...: what colo_enter goes back to */
	__u32 entered;		/* 1: it was there, look no more than once */
	__u32 drains;		/* runs of colo_drain on this frame's back */
	__u32 end;		/* sequence number after the segment */
	__u32 scale;		/* window shift of the flow */
	struct colo_offer offer;	/* of a SYN */
	__u32 kind;		/* enum colo_slot_kind, of a frame to be held */
	__u32 before;		/* `verified` before this segment of the SVM */
	__u32 cut_bytes;	/* payload of one slot: all, or what GSO would send in one frame */
	__u32 cuts;		/* slots the frame needs */
	__u32 cut;		/* the next to be held */
	__u32 reuse;		/* the slot it takes, slot + 1; 0: a free one */
	__u32 again;		/* 1: the first cut goes before all held frames, the rest nowhere */
	__u32 made;		/* slots taken */
	__u32 parked;		/* the frame goes to the delay line, slot + 1; 0: it does not */
	__u32 out;		/* 1: the frame has come out of the delay line, and leaves */
	__u32 line;		/* once more, in this class (enum colo_line) */
	__u32 resent;		/* the SVM's segment begins before what it had sent */
	__u64 held_ns;		/* when the frame was held that the SVM's verifies; 0: none was */
	struct colo_plan plan;
	struct colo_pkt pkt;
	struct colo_now now;
	struct colo_flow_key flow;
	struct colo_stop stop[COLO_STOPS];
	__u64 cut_digest[COLO_CUTS];	/* of the stream at each cut's end; 0: unknown */
};

struct colo_buf {		/* payload, behind the bytes of an unfinished block */
	__u64 word[COLO_BUF_WORDS + 8 * COLO_LANES];
};

BPF_PERCPU_ARRAY(colo_works, struct colo_work, 1);
/* One per CPU as well, but larger than a per-CPU map's values may be. */
BPF_ARRAY(colo_bufs, struct colo_buf, COLO_CPUS);

static __always_inline struct colo_buf *colo_buf_get(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return colo_bufs.lookup(&cpu);
}

/* As the program has left it that called this one. */
static __always_inline struct colo_work *colo_work_again(void)
{
	__u32 zero = 0;

	return colo_works.lookup(&zero);
}

static __always_inline struct colo_work *colo_work_get(void)
{
	struct colo_work *work = colo_work_again();

	if (work) {
		__builtin_memset(&work->plan, 0, sizeof(work->plan));
		__builtin_memset(&work->flow, 0, sizeof(work->flow));
		work->step = COLO_STEP_DONE;
		work->drains = 0;
		work->parked = 0;
		work->again = 0;
		work->out = 0;
		work->held_ns = 0;
	}
	return work;
}

static __always_inline void colo_now_get(struct colo_config *conf, struct colo_now *now,
					 __u64 at_ns)
{
	__u64 *heard = colo_live_word(COLO_LIVE_HEARD_NS);
	struct colo_turn_cell *turn;
	__u32 zero = 0;
	__u64 word = 0;

	turn = colo_turn.lookup(&zero);
	if (turn)
		word = *(volatile __u64 *)&turn->word;
	now->epoch = word >> 1;
	now->phase = word & COLO_TURNING_BIT ? COLO_TURNING : COLO_OPEN;
	now->mode = conf->mode;
	/* Signed: the link's CPU may have heard it again since the clock was read. */
	now->at_ns = at_ns;
	now->heard = heard && (__s64)(at_ns - *heard) <= (__s64)conf->link_timeout_ns;
	now->may_release = now->mode == COLO_PRIMARY && now->phase == COLO_OPEN && now->heard;
}

/* Why nothing may be released now (`may_release` is 0). */
static __always_inline __u32 colo_now_kept(struct colo_now *now)
{
	if (now->mode != COLO_PRIMARY)
		return now->mode == COLO_SOLO ? COLO_R_SOLO : COLO_R_WITHHELD;
	return now->phase == COLO_TURNING ? COLO_R_TURNING : COLO_R_LINK_SILENT;
}

#endif /* COLO_SCRATCH_H */
