# SPDX-License-Identifier: GPL-2.0-only
"""Faults of a TCP stream: its sequence numbers, its offsets and what is sent in its stead."""

from __future__ import annotations

from tests.planted.mutant import Mutant

COMPARE = "tests/bpf/test_compare.py"
MIRROR = "tests/bpf/test_mirror.py"
MODEL = "tests/model/test_stream.py"
PAIR = "tests/model/test_pair.py"
PROTOCOLS = "tests/bpf/test_protocols.py"
LEADS = "tests/bpf/test_leads.py"
WHOLE = "tests/bpf/test_whole.py"
MALFORMED = "tests/bpf/test_malformed.py"
HASH = "tests/bpf/test_hash.py"
MANY = "tests/bpf/test_many_connections.py"
ATTACKS = "tests/bpf/test_attacks.py"
QUOTED = "tests/bpf/test_quoted.py"
MPTCP = "tests/bpf/test_mptcp.py"
BIG = "tests/bpf/test_big_tcp.py"

MUTANTS = (
    Mutant(
        "an ACK that waits is forgotten behind a whole row",
        "include/colo_substitute.h",
        "	if (flow->ack_slot || work->plan.part)\n		return 0;\n",
        "",
        COMPARE,
    ),
    Mutant(
        "one byte more is verified than was compared",
        "include/colo_stream.h",
        "walk->met = walk->base + stop->at;",
        "walk->met = walk->base + stop->at + 1;",
        MODEL,
    ),
    Mutant(
        "digests that differ agree",
        "include/colo_stream.h",
        "if (stop->other != stop->digest) {",
        "if (0) {",
        COMPARE,
    ),
    Mutant(
        "the hash forgets the unfinished word of the segment before",
        "include/colo_stream.h",
        "__builtin_memcpy(&buf->word[COLO_START / 8], side->part, sizeof(side->part));",
        "__builtin_memset(&buf->word[COLO_START / 8], 0, sizeof(side->part));",
        COMPARE,
    ),
    Mutant(
        "a full list of boundaries loses its oldest",
        "include/colo_stream.h",
        "for (n = COLO_BOUNDS / 2; n < COLO_BOUNDS / 4 * 3; n++)",
        "for (n = 0; n < COLO_BOUNDS / 4 * 3; n++)",
        LEADS,
    ),
    Mutant(
        "a full list of boundaries keeps no more",
        "include/colo_stream.h",
        "colo_bounds_thin(flow);\n		flow->bounds++;",
        "return;\n		flow->bounds++;",
        LEADS,
    ),
    Mutant(
        "the newest boundary is not always there",
        "include/colo_stream.h",
        "flow->strode++;",
        "if (flow->strode++)\n		return;",
        LEADS,
    ),
    Mutant(
        "an end beyond the oldest is only in the ring",
        "include/colo_stream.h",
        "if (flow->bounds > COLO_BOUNDS / 2)	/* some of them will go */",
        "if (0)",
        LEADS,
    ),
    Mutant(
        "an end of another epoch counts",
        "include/colo_stream.h",
        "colo_mix(flow->owner + flow->gen, flow->epoch)",
        "colo_mix(flow->owner + flow->gen, 1)",
        LEADS,
    ),
    Mutant(
        "an end of another connection counts",
        "include/colo_stream.h",
        "colo_mix(flow->owner + flow->gen, flow->epoch)",
        "colo_mix(flow->gen, flow->epoch)",
        LEADS,
    ),
    Mutant(
        "a takeover before the client's first answer loses the connection",
        "include/colo_seqadj.h",
        "if (learn || colo_off_half(slot))",
        "if (learn)",
        MIRROR,
    ),
    Mutant(
        "a takeover forgets what separates the VMs' numbers",
        "include/colo_seqadj.h",
        "return conf->mode == COLO_SOLO ? conf->lasting_epoch : epoch;",
        "return conf->mode == COLO_SOLO ? 0 : epoch;",
        PAIR,
    ),
    Mutant(
        "sequence numbers are compared without their wrap",
        "include/colo_packet.h",
        "#define COLO_AFTER(a, b)	((__s32)((a) - (b)) > 0)",
        "#define COLO_AFTER(a, b)	((a) > (b))",
        MODEL,
    ),
    Mutant(
        "an offset outlives its epoch",
        "include/colo_seqadj.h",
        "	return make ? slot : 0;\n",
        "	return slot;\n",
        MIRROR,
    ),
    Mutant(
        "a translated number leaves the checksum as it was",
        "include/colo_seqadj.h",
        "return bpf_l4_csum_replace(skb, pkt->sum, 0, diff, 0);",
        "return 0;",
        MIRROR,
    ),
    Mutant(
        "the checksum of an option at an odd place is not swapped",
        "include/colo_seqadj.h",
        "if ((at - pkt->l4) & 1)",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "a VM hears that the other end offers multipath TCP",
        "include/colo_seqadj.h",
        "if (head[0] == COLO_OPT_MPTCP &&",
        "if (0 &&",
        MPTCP,
    ),
    Mutant(
        "a frame longer than an IP header can say is malformed",
        "include/colo_packet.h",
        "return !said && skb->gso_size ? skb->len : from + bpf_ntohs(said);",
        "return from + bpf_ntohs(said);",
        BIG,
    ),
    Mutant(
        "a SACK edge is forgotten",
        "include/colo_seqadj.h",
        "for (i = 0; i < 2 * COLO_SACK_BLOCKS; i++) {",
        "for (i = 0; i < 1; i++) {",
        MIRROR,
    ),
    Mutant(
        "the SVM is shown a clock it has not reached",
        "include/colo_seqadj.h",
        "if (slot->flags & COLO_OFF_TS_SENT && COLO_AFTER(tsecr, slot->ts_sent))",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "a survivor's clock runs backwards",
        "include/colo_seqadj.h",
        "if (slot->flags & COLO_OFF_TS_SEEN && COLO_AFTER(slot->ts_seen, tsval))",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "a lasting offset is applied to the next connection",
        "include/colo_seqadj.h",
        "	if (flags & COLO_TCP_SYN)\n		colo_last.delete(key);\n",
        "",
        MIRROR,
    ),
    Mutant(
        "a GSO frame's cuts share one digest",
        "include/colo_stream.h",
        "work->cut_digest[(stop->cut - 1) & (COLO_CUTS - 1)] = stop->digest;",
        "work->cut_digest[0] = stop->digest;",
        PROTOCOLS,
    ),
    Mutant(
        "tags are no part of a flow",
        "include/colo_packet.h",
        "	key->vlan = pkt->vlan;\n	key->inner_vlan = pkt->inner_vlan;\n",
        "",
        PROTOCOLS,
    ),
    Mutant(
        "a protocol nobody knows is waved through",
        "include/colo_packet.h",
        "return pkt->ethertype == ETH_P_ARP || pkt->ethertype == COLO_ETH_RARP ||",
        "return 1 || pkt->ethertype == COLO_ETH_RARP ||",
        PROTOCOLS,
    ),
    Mutant(
        "a turn that is undone has lost its offsets",
        "include/colo_seqadj.h",
        "slot = &off->slot[epoch & 1];",
        "slot = &off->slot[0];",
        ATTACKS,
    ),
    Mutant(
        "an ICMP error quotes the client's numbers to the VM",
        "include/colo_seqadj.h",
        "		return colo_put(skb, quoted, quoted->l4 + 4, quoted->seq, quoted->seq + delta);",
        "		return 0;",
        QUOTED,
    ),
    Mutant(
        "the SVM's frame says what it has not received",
        "include/colo_substitute.h",
        "colo_told(slot->ack, flow->floor),",
        "slot->ack,",
        WHOLE,
    ),
    Mutant(
        "segments leave that are larger than the PVM's",
        "include/colo_substitute.h",
        "skb->gso_size <= slot->bytes && ",
        "",
        WHOLE,
    ),
    Mutant(
        "a finished checksum is taken for that of a longer frame",
        "include/colo_substitute.h",
        "(!same && colo_sum_is_due(skb, work->pkt.sum, work->pkt.check) != 1) ||\n	    ",
        "",
        WHOLE,
    ),
    Mutant(
        "the checksum misses that the options are the PVM's",
        "include/colo_substitute.h",
        "	if (options) {\n",
        "	if (options > 60) {\n",
        WHOLE,
    ),
    Mutant(
        "the checksum misses that flags and window are the PVM's",
        "include/colo_substitute.h",
        "+ ack + half[0] + half[1];",
        "+ ack + pkt->control;",
        WHOLE,
    ),
    Mutant(
        "the SVM's urgent pointer leaves",
        "include/colo_substitute.h",
        "frame->data[l4 + 13] & COLO_TCP_URG",
        "0",
        WHOLE,
    ),
    Mutant(
        "the SVM's checksum of a datagram leaves uncompared",
        "include/colo_substitute.h",
        "	return bpf_skb_store_bytes(skb, at, &sum, 2, BPF_F_RECOMPUTE_CSUM);",
        "	return 0;",
        MALFORMED,
    ),
    Mutant(
        "the row stays when the SVM's frame has left",
        "include/colo_substitute.h",
        "		colo_whole_drop(flow, work);\n",
        "		colo_slot_unclaim(slot);\n",
        WHOLE,
    ),
    Mutant(
        "the one frame stays when the SVM's has left",
        "include/colo_substitute.h",
        "	colo_whole_out(flow, slot);\n	work->plan.whole = 0;",
        "	colo_slot_unclaim(slot);\n	work->plan.whole = 0;",
        WHOLE,
    ),
    Mutant(
        "the SVM's frame leaves while another CPU sends what is before it",
        "include/colo_substitute.h",
        " || flow->emitter || flow->more ||",
        " ||",
        WHOLE,
    ),
    Mutant(
        "an ACK that waits is forgotten when the SVM's frame leaves",
        "include/colo_substitute.h",
        "	    !colo_whole_last(flow, work, slot->next) ||\n",
        "",
        WHOLE,
    ),
    Mutant(
        "a header that lies in pages keeps what the SVM wrote",
        "include/colo_substitute.h",
        "	if (to + COLO_PLAIN_L4 + 16 > (__u8 *)(long)skb->data_end)\n		return -1;",
        "	if (to + COLO_PLAIN_L4 + 16 > (__u8 *)(long)skb->data_end)\n		return 0;",
        HASH,
    ),
    Mutant(
        "the checksum misses that the ACK is the PVM's",
        "include/colo_substitute.h",
        "if (!options && ack == bpf_htonl(pkt->ack) &&",
        "if (!options &&",
        WHOLE,
    ),
    Mutant(
        "the checksum stays if just the options differ",
        "include/colo_substitute.h",
        "if (!options && ack == bpf_htonl(pkt->ack) &&",
        "if (ack == bpf_htonl(pkt->ack) &&",
        WHOLE,
    ),
    Mutant(
        "offsets of ended connections keep their place",
        "include/colo_seqadj.h",
        'BPF_TABLE_PINNED("lru_hash", struct colo_flow_key, struct colo_off,',
        'BPF_TABLE_PINNED("hash", struct colo_flow_key, struct colo_off,',
        MANY,
    ),
)
