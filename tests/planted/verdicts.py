# SPDX-License-Identifier: GPL-2.0-only
"""Faults of the verdict on a frame: what is compared, held and released."""

from __future__ import annotations

from tests.planted.mutant import Mutant

JUMBO = "tests/bpf/test_jumbo.py"
COMPARE = "tests/bpf/test_compare.py"
MODEL = "tests/model/test_stream.py"
PROTOCOLS = "tests/bpf/test_protocols.py"
GOLDEN = "tests/bpf/test_golden.py"
LEADS = "tests/bpf/test_leads.py"
SAID = "tests/bpf/test_said.py"
BEAT = "tests/bpf/test_beat.py"
WHOLE = "tests/bpf/test_whole.py"
PARK = "tests/bpf/test_park.py"
RESENT = "tests/bpf/test_resent.py"
HASH = "tests/bpf/test_hash.py"
RESET = "tests/bpf/test_reset.py"
LATE = "tests/bpf/test_late.py"
GONE = "tests/bpf/test_gone.py"
WINDOW = "tests/bpf/test_window.py"
ATTACKS = "tests/bpf/test_attacks.py"
EXITS = "tests/bpf/test_exits.py"

MUTANTS = (
    Mutant(
        "the SVM of a past epoch verifies",
        "compare.c",
        "if (tag == COLO_EPOCH_NONE || ahead < 0)",
        "if (tag == COLO_EPOCH_NONE)",
        COMPARE,
    ),
    Mutant(
        "comparison goes on during a turn",
        "compare.c",
        "return now->phase == COLO_TURNING ? COLO_R_TURNING : COLO_R_NONE;",
        "return COLO_R_NONE;",
        COMPARE,
    ),
    Mutant(
        "frames that wait for a checkpoint are flushed before it",
        "include/colo_release.h",
        "int due = colo_slot_due(&work->now, slot);",
        "int due = 1;",
        COMPARE,
    ),
    Mutant(
        "a checkpoint frees nothing",
        "include/colo_release.h",
        "int due = colo_slot_due(&work->now, slot);",
        "int due = work->now.mode == COLO_SOLO;",
        COMPARE,
    ),
    Mutant(
        "the ACK of a passing frame is one too far",
        "include/colo_pvm.h",
        "plan->ack = colo_told(pkt->ack, flow->floor);\n"
        "	plan->edge = colo_flow_edge(flow, edge);\n"
        "	plan->lower = plan->ack != pkt->ack || plan->edge != edge;\n}\n",
        "plan->ack = colo_told(pkt->ack, flow->floor + 1);\n"
        "	plan->edge = colo_flow_edge(flow, edge);\n"
        "	plan->lower = plan->ack != pkt->ack || plan->edge != edge;\n}\n",
        MODEL,
    ),
    Mutant(
        "a pure ACK passes beyond the floor",
        "include/colo_pvm.h",
        "!COLO_AFTER(work->pkt.ack, flow->floor)) {",
        "1) {",
        COMPARE,
    ),
    Mutant(
        "every segment behind a lost one of the SVM asks for a checkpoint",
        "include/colo_svm.h",
        "	flow->flags |= COLO_F_SVM_GAP;\n",
        "",
        ATTACKS,
    ),
    Mutant(
        "the hash leaves out the unfinished word",
        "include/colo_hash.h",
        "walk->tail[i] = word[i] & ~colo_from_byte(bytes);",
        "walk->tail[i] = 0;",
        COMPARE,
    ),
    Mutant(
        "a hole in the PVM's stream is hashed over",
        "include/colo_pvm.h",
        "if (COLO_AFTER(pkt->seq, flow->pvm.next)) {",
        "if (0) {",
        GOLDEN,
    ),
    Mutant(
        "a hole in the SVM's stream is hashed over",
        "include/colo_svm.h",
        "if (COLO_AFTER(work->pkt.seq, flow->svm.next)) {",
        "if (0) {",
        GOLDEN,
    ),
    Mutant(
        "a second copy of a held segment passes",
        "include/colo_pvm.h",
        "colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_HELD_AGAIN);",
        "colo_plan_set(&work->plan, COLO_V_PASS, COLO_R_HELD_AGAIN);",
        COMPARE,
    ),
    Mutant(
        "of a resent segment more leaves than is verified",
        "include/colo_pvm.h",
        "work->cut_bytes = colo_min(work->cut_bytes, verified);",
        "work->cut_bytes = colo_min(work->cut_bytes, verified + 1);",
        RESENT,
    ),
    Mutant(
        "verified bytes that come again do not leave",
        "include/colo_pvm.h",
        "flow->flags & COLO_F_HAS_FLOOR && (__s32)verified > 0)",
        "flow->flags & COLO_F_HAS_FLOOR && (__s32)verified > 65536)",
        RESENT,
    ),
    Mutant(
        "what finds no room leaves",
        "include/colo_pvm.h",
        "colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_STORE_FULL);",
        "colo_plan_set(&work->plan, COLO_V_PASS, COLO_R_STORE_FULL);",
        COMPARE,
    ),
    Mutant(
        "what leaves with less than it said is forgotten",
        "include/colo_release.h",
        "if (!colo_ack_owed(slot, told, edge))",
        "if (1)",
        WINDOW,
    ),
    Mutant(
        "a lowered acknowledgment of an answer is forgotten",
        "include/colo_pvm.h",
        "(COLO_AFTER(pkt->ack, plan->ack) ||",
        "(0 ||",
        WINDOW,
    ),
    Mutant(
        "what the PVM takes back is told all the same",
        "include/colo_pvm.h",
        "if (slot && !colo_slot_claim(slot))\n		colo_slot_free(slot);\n	flow->ack_slot = 0;",
        "",
        WINDOW,
    ),
    Mutant(
        "what one carrier does not take waits for the next frame",
        "compare.c",
        "		if (!conf->park_ifindex)\n			return TC_ACT_SHOT;\n",
        "		if (conf)\n			return TC_ACT_SHOT;\n",
        LEADS,
    ),
    Mutant(
        "an equal datagram verifies any number of copies",
        "include/colo_datagram.h",
        "if (--note->copies == 0)",
        "if (0)",
        COMPARE,
    ),
    Mutant(
        "a datagram noted long ago verifies",
        "include/colo_datagram.h",
        "if ((__s64)(note->at_ns - since) < 0) {",
        "if (0) {",
        COMPARE,
    ),
    Mutant(
        "a datagram of a past epoch verifies",
        "include/colo_datagram.h",
        "if (note->digest != digest || note->slot || note->epoch != epoch)",
        "if (note->digest != digest || note->slot)",
        COMPARE,
    ),
    Mutant(
        "what another state said leaves",
        "include/colo_release.h",
        "work->now.mode == COLO_SOLO && slot->epoch == conf->lasting_epoch;",
        "work->now.mode == COLO_SOLO;",
        SAID,
    ),
    Mutant(
        "a beacon says the epoch it was begun in",
        "compare.c",
        "return colo_beat(skb, conf, work->now.epoch);",
        "return colo_beat(skb, conf, work->now.epoch & ~15ULL);",
        BEAT,
    ),
    Mutant(
        "a held SYN keeps the sum of its pseudo-header",
        "include/colo_pvm.h",
        "		colo_hold_sum(frame, pkt, copy.tag, tcp_len, IPPROTO_TCP);\n",
        "",
        PROTOCOLS,
    ),
    Mutant(
        "fragments are equal wherever they belong",
        "include/colo_datagram.h",
        "pkt->fragment << 8 | pkt->proto",
        "pkt->proto",
        PROTOCOLS,
    ),
    Mutant(
        "a load nobody told of changes nothing",
        "compare.c",
        "if (turn && now->phase == COLO_OPEN &&",
        "if (0 && turn && now->phase == COLO_OPEN &&",
        ATTACKS,
    ),
    Mutant(
        "an SVM that missed an input is left to itself",
        "include/colo_svm.h",
        "if (flow->s_resends < 2 && ++flow->s_resends == 2)",
        "if (0)",
        ATTACKS,
    ),
    Mutant(
        "each withheld ACK takes a slot of its own",
        "include/colo_pvm.h",
        "	if (slot && !colo_slot_claim(slot))\n		work->reuse = ref;\n",
        "",
        ATTACKS,
    ),
    Mutant(
        "a new epoch's frame overtakes the old one's",
        "include/colo_pvm.h",
        "!flow->head && !flow->emitter && !colo_park_now(flow)) {",
        "!flow->emitter && !colo_park_now(flow)) {",
        ATTACKS,
    ),
    Mutant(
        "a SYN-ACK of a simultaneous open is no ACK",
        "include/colo_pvm.h",
        "	return pkt->flags & COLO_TCP_ACK &&\n	       (!",
        "	return 0 && (!",
        ATTACKS,
    ),
    Mutant(
        "all NICs are one",
        "compare.c",
        "	pkt->nic = nic;\n",
        "	pkt->nic = 0;\n",
        PROTOCOLS,
    ),
    Mutant(
        "a part that leaves is longer than what is verified",
        "include/colo_release.h",
        "__u32 part = (verified - slot->start) & ~3;",
        "__u32 part = (verified - slot->start + 3) & ~3;",
        RESENT,
    ),
    Mutant(
        "bytes of the SVM that differ verify",
        "include/colo_svm.h",
        "if ((ours ^ buf->word[i]) & ~colo_from_byte(bytes))",
        "if (0)",
        RESENT,
    ),
    Mutant(
        "an ACK on its way to the SVM is one it missed",
        "include/colo_svm.h",
        "- flow->c_acked_ns < COLO_ACK_TRAVELS_NS",
        "- flow->c_acked_ns < 0",
        ATTACKS,
    ),
    Mutant(
        "what the SVM sent before leaves in its frame, unlooked at",
        "include/colo_svm.h",
        " && work->walk.from == work->pkt.seq &&",
        " &&",
        WHOLE,
    ),
    Mutant(
        "a frame that was lost in the line is waited for",
        "include/colo_release.h",
        "			if (colo_park_lost(slot))\n				colo_flow_forget(flow, slot);",
        "			;",
        PARK,
    ),
    Mutant(
        "a flush sends what a parked frame's slot keeps",
        "include/colo_release.h",
        "	if (!colo_park_lost(slot))\n		return COLO_FLUSH_SKIP;",
        "	if (!colo_park_lost(slot))\n		return COLO_FLUSH_SENT;",
        PARK,
    ),
    Mutant(
        "a verified frame overtakes parked ones",
        "include/colo_pvm.h",
        " && !colo_park_now(flow)) {",
        ") {",
        PARK,
    ),
    Mutant(
        "a flush lets frames out while the peer is not heard",
        "compare.c",
        "conf->mode == COLO_PRIMARY && !work->now.heard)",
        "0)",
        ATTACKS,
    ),
    Mutant(
        "what a checkpoint has freed leaves the line while the peer is not heard",
        "include/colo_release.h",
        "now->mode == COLO_PRIMARY && now->heard && slot->epoch",
        "now->mode == COLO_PRIMARY && slot->epoch",
        PARK,
    ),
    Mutant(
        "the hash multiplies with a constant",
        "include/colo_hash.h",
        "return hash * (hash >> 31 | 1);",
        "hash *= COLO_PHI;\n	return hash ^ hash >> 29;",
        HASH,
    ),
    Mutant(
        "zeros make the hash forget",
        "include/colo_hash.h",
        "return hash * (hash >> 31 | 1);",
        "return hash * (hash >> 31 << 1);",
        HASH,
    ),
    Mutant(
        "what a buffer held before belongs to a datagram",
        "include/colo_hash.h",
        "*word = (first & ~colo_from_byte(before)) |",
        "*word = first |",
        HASH,
    ),
    Mutant(
        "the unfinished word of a stream is lost",
        "include/colo_hash.h",
        "*word = (first & ~colo_from_byte(before)) |",
        "*word =",
        HASH,
    ),
    Mutant(
        "what is behind a short payload is hashed with it",
        "include/colo_hash.h",
        ">> after * 8;",
        ";",
        HASH,
    ),
    Mutant(
        "a short payload that lies in pages counts as read",
        "include/colo_hash.h",
        "!colo_load_words(skb, buf, from, to, len))",
        "(colo_load_words(skb, buf, from, to, len), 1))",
        HASH,
    ),
    Mutant(
        "what the PVM has reset the SVM may not",
        "include/colo_reset.h",
        "	flow->flags |= COLO_F_RESET;\n",
        "",
        RESET,
    ),
    Mutant(
        "a reset's slot is freed though another has it",
        "include/colo_reset.h",
        "ix = flow->epoch == work->now.epoch ? flow->svm_reset - 1 : -1;",
        "ix = flow->svm_reset - 1;",
        RESET,
    ),
    Mutant(
        "a reset of the SVM that is ahead is told at once",
        "include/colo_reset.h",
        "work->step != COLO_STEP_HASH ||\n	    !COLO_AFTER(work->end, flow->svm.next))",
        "work->step != COLO_STEP_HASH)",
        RESET,
    ),
    Mutant(
        "a reset that only the PVM said lets others follow it",
        "include/colo_reset.h",
        "over = flow->flags & COLO_F_OVER ? 1 : 0;",
        "over = flow->flags & COLO_F_RESET ? 1 : 0;",
        RESET,
    ),
    Mutant(
        "each reset waits for one of the SVM",
        "compare.c",
        "if (colo_pvm_reset(conf, work) && work->now.may_release)",
        "if (colo_pvm_reset(conf, work) && 0)",
        RESET,
    ),
    Mutant(
        "a primary that is cut off resets what was over",
        "compare.c",
        "if (colo_pvm_reset(conf, work) && work->now.may_release)",
        "if (colo_pvm_reset(conf, work))",
        RESET,
    ),
    Mutant(
        "every reset that waits takes a slot",
        "include/colo_datagram.h",
        "if (reset && colo_dgram_waits(bucket, work->digest, now->epoch)) {",
        "if (0 && colo_dgram_waits(bucket, work->digest, now->epoch)) {",
        RESET,
    ),
    Mutant(
        "nobody is told that the VMs parted by a reset",
        "include/colo_reset.h",
        "	work->plan.event = COLO_EV_SVM_RESET;\n",
        "",
        RESET,
    ),
    Mutant(
        "every reset of the SVM takes a slot",
        "include/colo_reset.h",
        "flow->flags & COLO_F_RESET || flow->svm_reset)",
        "flow->flags & COLO_F_RESET)",
        RESET,
    ),
    Mutant(
        "a flush before the checkpoint forgets the SVM's reset",
        "include/colo_release.h",
        "		if (due && !colo_slot_claim(slot))\n			colo_slot_free(slot);\n",
        "		if (!colo_slot_claim(slot))\n			colo_slot_free(slot);\n",
        RESET,
    ),
    Mutant(
        "a reset that ended nothing ends the watch",
        "include/colo_pvm.h",
        "	flow->flags &= ~(COLO_F_RESET | COLO_F_OVER);",
        "	;",
        RESET,
    ),
    Mutant(
        "lateness counts from the last held frame",
        "include/colo_svm.h",
        "static __always_inline __u64 colo_svm_held_ns(struct colo_flow *flow)\n{\n"
        "\t__u32 ix = flow->head - 1;",
        "static __always_inline __u64 colo_svm_held_ns(struct colo_flow *flow)\n{\n"
        "\t__u32 ix = flow->tail - 1;",
        LATE,
    ),
    Mutant(
        "in a turn the frames of who is gone are dropped",
        "include/colo_pvm.h",
        "if (flow->c_gone && work->now.phase == COLO_OPEN) {",
        "if (flow->c_gone) {",
        GONE,
    ),
    Mutant(
        "a reset of both leaves what was held",
        "include/colo_reset.h",
        "	colo_gone_empty(flow, prog);\n",
        "",
        GONE,
    ),
    Mutant(
        "a new connection's first frame may vanish",
        "compare.c",
        "		return colo_finish(skb, COLO_PROG_ENTER, COLO_V_DROP, COLO_R_NO_CONF);\n",
        "		return TC_ACT_SHOT;\n",
        EXITS,
    ),
    Mutant(
        "a run of a flush looks at what the first one has looked at",
        "compare.c",
        "skb->cb[COLO_CB_LOOKED] += COLO_FLUSH_SLOTS;",
        "skb->cb[COLO_CB_LOOKED] = COLO_FLUSH_SLOTS;",
        COMPARE,
    ),
    Mutant(
        "a flush asks the frame that it has sent where to begin",
        "compare.c",
        "if (!skb->cb[COLO_CB_LOOKED]) {",
        "if (1) {",
        COMPARE,
    ),
    Mutant(
        "a long frame is hashed as far as one program goes",
        "include/colo_hash.h",
        "return colo_walk_hash(work, buf, COLO_HASH_FIRST);",
        "return colo_walk_hash(work, buf, COLO_HASH_FIRST) & 0;",
        JUMBO,
    ),
    Mutant(
        "a carrier that comes in a turn vanishes",
        "include/colo_carry.h",
        "return colo_finish(skb, COLO_PROG_PARK, COLO_V_DROP, colo_now_kept(&work->now));",
        "return TC_ACT_SHOT;",
        EXITS,
    ),
)
