# SPDX-License-Identifier: GPL-2.0-only
"""Faults of what is kept of flows, and the two places where frames wait."""

from __future__ import annotations

from tests.planted.mutant import Mutant

COMPARE = "tests/bpf/test_compare.py"
MODEL = "tests/model/test_stream.py"
PROTOCOLS = "tests/bpf/test_protocols.py"
TABLE = "tests/bpf/test_flow_table.py"
SAID = "tests/bpf/test_said.py"
PARK = "tests/bpf/test_park.py"
RESET = "tests/bpf/test_reset.py"
MANY = "tests/bpf/test_many_connections.py"
LATE = "tests/bpf/test_late.py"
GONE = "tests/bpf/test_gone.py"
WINDOW = "tests/bpf/test_window.py"
ATTACKS = "tests/bpf/test_attacks.py"

MUTANTS = (
    Mutant(
        "heard a moment later is silence",
        "include/colo_scratch.h",
        "(__s64)(at_ns - *heard) <= (__s64)conf->link_timeout_ns",
        "at_ns - *heard <= conf->link_timeout_ns",
        COMPARE,
    ),
    Mutant(
        "verified frames leave during a turn",
        "include/colo_scratch.h",
        "now->mode == COLO_PRIMARY && now->phase == COLO_OPEN && now->heard;",
        "now->mode == COLO_PRIMARY && now->heard;",
        COMPARE,
    ),
    Mutant(
        "a primary that is cut off goes on talking",
        "include/colo_scratch.h",
        "now->phase == COLO_OPEN && now->heard;",
        "now->phase == COLO_OPEN;",
        COMPARE,
    ),
    Mutant(
        "a carried frame keeps its ACK",
        "include/colo_hold.h",
        "	__builtin_memcpy(&frame->data[off + 8], &told, 4);\n",
        "",
        COMPARE,
    ),
    Mutant(
        "the floor survives the load that rolled the SVM back",
        "include/colo_flow.h",
        "	flow->floor = flow->p_ack;\n	flow->s_scale",
        "	flow->s_scale",
        MODEL,
    ),
    Mutant(
        "SYN-ACKs that answer different SYNs agree",
        "include/colo_flow.h",
        "if (!(flow->flags & COLO_F_SVM_SYN) || flow->s_syn_ack != p_ack)",
        "if (!(flow->flags & COLO_F_SVM_SYN))",
        ATTACKS,
    ),
    Mutant(
        "a window that the SVM closed stays closed",
        "include/colo_flow.h",
        "return raised || colo_flow_owes(flow);",
        "return raised;",
        WINDOW,
    ),
    Mutant(
        "any wider window is worth a segment",
        "include/colo_flow.h",
        "(COLO_AFTER(edge, slot->start) && edge - slot->start >= slot->start - slot->end)",
        "COLO_AFTER(edge, slot->start)",
        WINDOW,
    ),
    Mutant(
        "a client with room is owed more",
        "include/colo_hold.h",
        "return (__s32)room < COLO_ROOM && ",
        "return ",
        WINDOW,
    ),
    Mutant(
        "an ACK that follows an answer is where the answer is",
        "include/colo_hold.h",
        "__builtin_memcpy(&frame->data[l4 + 4], &next, 4);",
        "",
        WINDOW,
    ),
    Mutant(
        "an entry is taken out while another CPU works on it",
        "include/colo_table.h",
        "!colo_flow_ended(flow, now) || colo_flow_lock(flow, &key, 1)",
        "!colo_flow_ended(flow, now)",
        TABLE,
    ),
    Mutant(
        "an entry with held frames is taken out",
        "include/colo_table.h",
        "	if (flow->held || flow->ack_slot)\n		return 0;\n",
        "",
        TABLE,
    ),
    Mutant(
        "an entry that was used again is taken for the old one",
        "include/colo_lock.h",
        "if (flow->owner == colo_flow_owner(key))",
        "if (1)",
        TABLE,
    ),
    Mutant(
        "living connections make room for new ones",
        "include/colo_table.h",
        "(crowded ? COLO_ENDED_NS : COLO_IDLE_NS)",
        "(crowded ? 0 : COLO_IDLE_NS)",
        TABLE,
    ),
    Mutant(
        "what was said in an unknown epoch is kept",
        "include/colo_replay.h",
        "epoch == COLO_EPOCH_NONE || ",
        "",
        SAID,
    ),
    Mutant(
        "a SYN is said again",
        "include/colo_replay.h",
        "pkt->flags & (COLO_TCP_SYN | COLO_TCP_RST)",
        "pkt->flags & COLO_TCP_RST",
        SAID,
    ),
    Mutant(
        "what was said counts as held",
        "include/colo_hold.h",
        "COLO_SLOT_LEAVING && !said)",
        "COLO_SLOT_LEAVING)",
        SAID,
    ),
    Mutant(
        "a cut keeps the sequence number of its GSO frame",
        "include/colo_hold.h",
        "	seq = bpf_htonl(seq);\n	__builtin_memcpy(&frame->data[l4 + 4], &seq, 4);\n",
        "",
        PROTOCOLS,
    ),
    Mutant(
        "bytes below the anchor have to be verified again",
        "include/colo_flow.h",
        "	flow->verified = flow->p_high;\n",
        "	flow->verified = flow->p_high - 1;\n",
        ATTACKS,
    ),
    Mutant(
        "a full table lets the client's SYN through",
        "include/colo_table.h",
        "return pkt->flags & COLO_TCP_SYN ? -1 : 0;",
        "return 0;",
        TABLE,
    ),
    Mutant(
        "what a SYN offers is not compared",
        "include/colo_flow.h",
        "if (flow->s_offer != flow->p_offer) {",
        "if (0) {",
        ATTACKS,
    ),
    Mutant(
        "a parked frame leaves though the SVM has not said it",
        "include/colo_delay_out.h",
        " && !COLO_AFTER(slot->end, flow->verified);",
        ";",
        PARK,
    ),
    Mutant(
        "a parked frame leaves though the peer is not heard",
        "include/colo_delay_out.h",
        "return work->now.may_release && slot->epoch == work->now.epoch &&",
        "return slot->epoch == work->now.epoch &&",
        PARK,
    ),
    Mutant(
        "the first parked frame goes round behind all others",
        "include/colo_delay_in.h",
        "work->line = first && flow->rounds++ < COLO_PARK_ROUNDS ?",
        "work->line = first && 0 ?",
        f"{PARK}::test_nothing_comes_between_the_first_and_what_is_behind",
    ),
    Mutant(
        "a parked frame goes round before all others for ever",
        "include/colo_delay_in.h",
        "work->line = first && flow->rounds++ < COLO_PARK_ROUNDS ?",
        "work->line = first ?",
        f"{PARK}::test_the_first_does_not_keep_other_flows_waiting",
    ),
    Mutant(
        "a flow whose frame was late is late for ever",
        "include/colo_delay_out.h",
        "	flow->rounds = 0;\n",
        "",
        f"{PARK}::test_the_first_does_not_keep_other_flows_waiting",
    ),
    Mutant(
        "a parked frame overtakes the one before it",
        "include/colo_delay_out.h",
        "if (first && !flow->emitter && (due",
        "if (!flow->emitter && (due",
        PARK,
    ),
    Mutant(
        "what was parked before the turn is held as of after it",
        "include/colo_delay_out.h",
        "	work->now.epoch = slot->epoch;\n",
        "",
        PARK,
    ),
    Mutant(
        "a parked frame is taken for another that has its slot",
        "include/colo_delay_out.h",
        "slot->flow.client_port != work->flow.client_port ||",
        "",
        PARK,
    ),
    Mutant(
        "the cuts of a parked frame come behind all others",
        "include/colo_delay_out.h",
        "	flow->tail = ref;\n",
        "",
        PARK,
    ),
    Mutant(
        "where the SVM stands inside a parked frame is not looked at",
        "include/colo_delay_out.h",
        "		colo_unpark_meet(work, flow);",
        "		;",
        PARK,
    ),
    Mutant(
        "any digest will do where the SVM stands",
        "include/colo_delay_out.h",
        "flow->svm.part, work->walk.key))\n		return;",
        "flow->svm.part, work->walk.key))\n		;",
        PARK,
    ),
    Mutant(
        "a parked frame of an ended connection leaves in the next one",
        "include/colo_delay_out.h",
        "	if (flow->gen != slot->gen || (work",
        "	if ((work",
        PARK,
    ),
    Mutant(
        "a checkpoint does not end what the PVM had reset",
        "include/colo_flow.h",
        "	if (flags & COLO_F_RESET)\n		flags |= COLO_F_OVER;\n",
        "",
        RESET,
    ),
    Mutant(
        "a reset's watch outlives its connection",
        "include/colo_flow.h",
        "	flow->unmet = 0;\n	flow->svm_reset = 0;\n	flow->unparked = 0;",
        "	flow->unmet = 0;\n	flow->unparked = 0;",
        RESET,
    ),
    Mutant(
        "a crowded table keeps what has ended for a minute",
        "include/colo_table.h",
        "(crowded ? COLO_SOON_NS : COLO_ENDED_NS)",
        "COLO_ENDED_NS",
        MANY,
    ),
    Mutant(
        "a crowded table keeps nothing",
        "include/colo_table.h",
        "#define COLO_SOON_NS		4000000000ULL",
        "#define COLO_SOON_NS		0ULL",
        MANY,
    ),
    Mutant(
        "what was late soon after a load counts as usual",
        "include/colo_event.h",
        "ix += COLO_LATE_LOADED * COLO_LATE_BUCKETS;",
        "ix += 0;",
        LATE,
    ),
    Mutant(
        "the load is in the future of a tick that is old",
        "include/colo_event.h",
        "if ((__s64)(now->at_ns - *loaded) < COLO_FRESH_NS)",
        "if (now->at_ns - *loaded < COLO_FRESH_NS)",
        LATE,
    ),
    Mutant(
        "any reset in the window ends a connection",
        "include/colo_table.h",
        "!(flow->flags & COLO_F_HAS_ACK) || pkt->seq != flow->p_ack",
        "!(flow->flags & COLO_F_HAS_ACK)",
        GONE,
    ),
    Mutant(
        "a client that goes on is not there",
        "include/colo_table.h",
        "\t\tflow->c_gone = 0;\n\t\treturn;",
        "\t\treturn;",
        GONE,
    ),
    Mutant(
        "what was dropped is not held again",
        "include/colo_hold.h",
        "flow->flags |= COLO_F_LOST;",
        "",
        GONE,
    ),
    Mutant(
        "the pending ACK stays",
        "include/colo_table.h",
        "if (!slot || colo_slot_claim(slot))\n\t\treturn;\n\tflow->ack_slot = 0;",
        "return;",
        GONE,
    ),
    Mutant(
        "a new connection is gone from the start",
        "include/colo_flow.h",
        "	flow->c_gone = 0;\n",
        "",
        GONE,
    ),
)
