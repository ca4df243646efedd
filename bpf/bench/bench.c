// SPDX-License-Identifier: GPL-2.0-only
/*
 * Run by the benchmarks, never attached and never part of a data plane: makes one frame after the
 * other out of a template, and hands each to a program of the plane, as its hook would.
 *
 * BPF_PROG_TEST_RUN repeats a program on the same frame; a comparer would take the second for a
 * retransmission. So ports and sequence number are set here, from a counter. A call costs the same
 * with no program at `callee`: what is measured so is taken off.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_hash.h"
#include "colo_hold.h"
#include "colo_lock.h"
#include "colo_maps.h"
#include "colo_packet.h"
#include "colo_scratch.h"
#include "colo_verifier.h"

#define BENCH_CALLS	8	/* programs to hand frames to; the first place stays empty */
#define BENCH_PORTS	15	/* bits of a flow's number that make the client's port */
#define BENCH_L4	(ETH_HLEN + 20)
#define BENCH_ODD	0x9E3779B1u	/* flows are visited in no order a cache could foresee */
#define BENCH_LINES	20	/* of 64 bytes, in an entry of the flow table */
#define BENCH_HEAD	(BENCH_L4 + 20)
#define BENCH_MTU	1500

enum bench_kind {
	BENCH_AS_IS = 0,
	BENCH_TCP = 1,
	BENCH_DGRAM = 2,
};

struct bench_plan {
	__u64 n;		/* frames made */
	__u32 flows;		/* a power of two */
	__u32 shift;		/* which one */
	__u32 seq;		/* of each flow's first frame */
	__u32 step;		/* sequence numbers from one to the next */
	__u32 ack;
	__u32 kind;		/* enum bench_kind */
	__u32 callee;		/* place in bench_calls; 0: none */
	__u32 inbound;		/* 1: the client's frames */
	__u32 vni;		/* of the link's frames */
	__u32 peer;		/* host order: where they come from */
	__u32 tag;		/* their epoch */
	__u32 lines;		/* bench_look: what it reads of an entry */
	struct colo_flow_key key;	/* bench_look: without ports */
	__u32 first;		/* number of the first flow */
	__u32 tap;		/* bench_least_svm: where the frame goes */
};

struct bench_head {		/* what changes from segment to segment */
	__be16 from;
	__be16 to;
	__be32 seq;
	__be32 ack;
};

struct bench_tunnel {		/* struct bpf_tunnel_key, with the address frames come from */
	__u32 id;
	__u32 remote[4];
	__u8 tos;
	__u8 ttl;
	__u16 ext;
	__u32 label;
	__u32 local[4];
};

BPF_ARRAY(bench_plans, struct bench_plan, 64);	/* by skb->cb[0]: the caller names it */
BPF_PROG_ARRAY(bench_calls, BENCH_CALLS);

static __always_inline struct bench_plan *bench_plan_get(struct __sk_buff *skb)
{
	__u32 ix = skb->cb[0];

	return bench_plans.lookup(&ix);
}

static __always_inline __u32 bench_flow(struct bench_plan *plan, __u64 n)
{
	return plan->first + (((__u32)n * BENCH_ODD) & (plan->flows - 1));
}

static __always_inline __be16 bench_vm_port(__u32 flow)
{
	return bpf_htons(80 + (flow >> BENCH_PORTS));
}

static __always_inline __be16 bench_client_port(__u32 flow)
{
	return bpf_htons(1024 + (flow & ((1 << BENCH_PORTS) - 1)));
}

/* Make the next frame. */
static __always_inline void bench_fresh(struct __sk_buff *skb, struct bench_plan *plan)
{
	__u64 n = plan->n++;
	__u32 flow = bench_flow(plan, n);
	struct bench_head head;

	skb->mark = 0;
	if (plan->kind == BENCH_DGRAM)
		bpf_skb_store_bytes(skb, BENCH_L4 + 8, &n, sizeof(n), 0);
	if (plan->kind != BENCH_TCP)
		return;
	head.from = plan->inbound ? bench_client_port(flow) : bench_vm_port(flow);
	head.to = plan->inbound ? bench_vm_port(flow) : bench_client_port(flow);
	head.seq = bpf_htonl(plan->seq + (__u32)(n >> (plan->shift & 63)) * plan->step);
	head.ack = bpf_htonl(plan->ack);
	bpf_skb_store_bytes(skb, BENCH_L4, &head, sizeof(head), 0);
}

/* A frame of the local VM, or of its client. */
int bench_run(struct __sk_buff *skb)
{
	struct bench_plan *plan = bench_plan_get(skb);

	if (!plan)
		return TC_ACT_SHOT;
	bench_fresh(skb, plan);
	bench_calls.call(skb, plan->callee);
	return TC_ACT_SHOT;
}

/* A frame of the link. */
int bench_link(struct __sk_buff *skb)
{
	struct bench_plan *plan = bench_plan_get(skb);
	struct bench_tunnel tunnel = {};
	__u32 tag;

	if (!plan)
		return TC_ACT_SHOT;
	bench_fresh(skb, plan);
	tunnel.id = plan->vni;
	tunnel.local[0] = plan->peer;
	tunnel.ttl = 64;
	tag = plan->tag;
	if (bpf_skb_set_tunnel_key(skb, (struct bpf_tunnel_key *)&tunnel, sizeof(tunnel), 0) ||
	    bpf_skb_set_tunnel_opt(skb, &tag, sizeof(tag)))
		return TC_ACT_SHOT;
	bench_calls.call(skb, plan->callee);
	return TC_ACT_SHOT;
}

static __always_inline struct colo_flow *bench_find(struct bench_plan *plan, __u32 number)
{
	struct colo_flow_key key = plan->key;

	key.vm_port = bench_vm_port(number);
	key.client_port = bench_client_port(number);
	return colo_flows.lookup(&key);
}

/*
 * What no comparer can do without that holds what was not compared: a frame is parsed, its
 * connection looked up and locked, and its payload hashed once. Nothing is decided or remembered.
 */
static __always_inline struct colo_frame *bench_least(struct __sk_buff *skb,
						      struct bench_plan *plan)
{
	__u32 ix = plan->n & (COLO_HOLD_PART - 1);
	struct colo_work *work = colo_work_again();
	struct colo_buf *buf = colo_buf_get();
	struct colo_walk *walk;
	struct colo_flow *flow;
	__u64 len;

	bench_fresh(skb, plan);
	if (!work || !buf || colo_parse(skb, &work->pkt))
		return 0;
	colo_key_from_vm(&work->pkt, &work->flow);
	flow = colo_flows.lookup(&work->flow);
	len = work->pkt.len;
	if (!flow || colo_outside(len, 1, BENCH_MTU) ||
	    colo_flow_lock(flow, &work->flow, COLO_LOCK_SPINS))
		return 0;
	if (!colo_load(skb, buf, work->pkt.payload, COLO_START, len)) {
		walk = &work->walk;
		colo_lanes_begin(walk->lane, flow->epoch);
		walk->pos = COLO_START;
		walk->limit = COLO_START + len;
		work->digest = colo_walk_plain(walk, buf);
	}
	colo_unlock(&flow->lock);
	return colo_frames.lookup(&ix);
}

/* The PVM's frame is copied: it may have to leave by itself. */
int bench_least_pvm(struct __sk_buff *skb)
{
	struct bench_plan *plan = bench_plan_get(skb);
	struct colo_frame *frame = plan ? bench_least(skb, plan) : 0;
	__u64 len = skb->len;

	if (!frame || colo_outside(len, BENCH_HEAD, COLO_FRAME_MAX))
		return 0;
	return !bpf_skb_load_bytes(skb, 0, frame->data, len);
}

/* The SVM's leaves in its place, under the header that was kept, and passes the tap's hook. */
int bench_least_svm(struct __sk_buff *skb)
{
	struct bench_plan *plan = bench_plan_get(skb);
	struct colo_frame *frame = plan ? bench_least(skb, plan) : 0;

	if (!frame || bpf_skb_store_bytes(skb, 0, frame->data, BENCH_HEAD, BPF_F_INVALIDATE_HASH))
		return 0;
	skb->mark = COLO_MARK_RELEASED;
	colo_count(COLO_PROG_DRAIN, COLO_V_CARRY, COLO_R_WHOLE, skb->len);
	return bpf_redirect(plan->tap, BPF_F_INGRESS);
}

/* The least a frame costs in a table of this size: one look-up, and reading some of the entry. */
int bench_look(struct __sk_buff *skb)
{
	struct bench_plan *plan = bench_plan_get(skb);
	struct colo_flow *flow;
	__u64 sum = 0;
	int i;

	if (!plan)
		return 0;
	flow = bench_find(plan, bench_flow(plan, plan->n++));
	if (!flow)
		return 0;
	for (i = 0; i < BENCH_LINES; i++)
		if (i < plan->lines)
			sum += *(volatile __u64 *)((char *)flow + 64 * i);
	return sum | 1;
}
