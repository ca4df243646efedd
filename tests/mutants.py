# SPDX-License-Identifier: GPL-2.0-only
"""`make mutants`: plant one fault at a time in the C sources; a named test must find each.

A mutant that survives is a hole in the tests. Add one for every bug that is found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.capabilities import ROOT

COMPARE, MIRROR = "tests/bpf/test_compare.py", "tests/bpf/test_mirror.py"
MODEL, PAIR = "tests/model/test_stream.py", "tests/model/test_pair.py"
PROTOCOLS, GOLDEN = "tests/bpf/test_protocols.py", "tests/bpf/test_golden.py"
TABLE, LEADS = "tests/bpf/test_flow_table.py", "tests/bpf/test_leads.py"
SAID = "tests/bpf/test_said.py"
ATTACKS, QUOTED = "tests/bpf/test_attacks.py", "tests/bpf/test_quoted.py"
_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Mutant:
    """Replace `old`, which occurs once in `file`, by `new`; `killer` must then fail."""

    name: str
    file: str
    old: str
    new: str
    killer: str


MUTANTS = [
    Mutant(
        "heard a moment later is silence",
        "compare.c",
        "(__s64)(bpf_ktime_get_boot_ns() - *heard) > (__s64)conf->link_timeout_ns",
        "bpf_ktime_get_boot_ns() - *heard > conf->link_timeout_ns",
        COMPARE,
    ),
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
        "verified frames leave during a turn",
        "compare.c",
        "now->mode == COLO_PRIMARY && now->phase == COLO_OPEN && !silent;",
        "now->mode == COLO_PRIMARY && !silent;",
        COMPARE,
    ),
    Mutant(
        "a primary that is cut off goes on talking",
        "compare.c",
        "now->phase == COLO_OPEN && !silent;",
        "now->phase == COLO_OPEN;",
        COMPARE,
    ),
    Mutant(
        "any pairing's frames are taken",
        "include/colo_link.h",
        "if ((key.tunnel_id & ~(COLO_NICS - 1)) != conf->vni || key.remote_ipv4",
        "if (key.remote_ipv4",
        MIRROR,
    ),
    Mutant(
        "frames that wait for a checkpoint are flushed before it",
        "include/colo_drain.h",
        "int due = work->now.mode == COLO_SOLO || slot->epoch != work->now.epoch;",
        "int due = 1;",
        COMPARE,
    ),
    Mutant(
        "a checkpoint frees nothing",
        "include/colo_drain.h",
        "int due = work->now.mode == COLO_SOLO || slot->epoch != work->now.epoch;",
        "int due = work->now.mode == COLO_SOLO;",
        COMPARE,
    ),
    Mutant(
        "the ACK of a passing frame is one too far",
        "include/colo_pvm.h",
        "plan->ack = COLO_AFTER(pkt->ack, flow->floor) ? flow->floor : pkt->ack;",
        "plan->ack = COLO_AFTER(pkt->ack, flow->floor) ? flow->floor + 1 : pkt->ack;",
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
        "a carried frame keeps its ACK",
        "include/colo_hold.h",
        "	to = bpf_htonl(ack);\n",
        "	to = from;\n",
        COMPARE,
    ),
    Mutant(
        "a lowered ACK leaves the checksum as it was",
        "include/colo_hold.h",
        "	to = bpf_htonl(ack);\n	colo_sum_replace(&frame->data[off + 16], from, to);\n",
        "	to = bpf_htonl(ack);\n",
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
        "one byte more is verified than was compared",
        "include/colo_hash.h",
        "walk->met = walk->base + stop->at;",
        "walk->met = walk->base + stop->at + 1;",
        MODEL,
    ),
    Mutant(
        "digests that differ agree",
        "include/colo_hash.h",
        "if (stop->other != stop->digest) {",
        "if (0) {",
        COMPARE,
    ),
    Mutant(
        "the hash leaves out the unfinished word",
        "include/colo_hash.h",
        "walk->tail[i] = word[i] & ~colo_from_byte(bytes);",
        "walk->tail[i] = 0;",
        COMPARE,
    ),
    Mutant(
        "the hash forgets the unfinished word of the segment before",
        "include/colo_flow.h",
        "__builtin_memcpy(&buf->word[COLO_START / 8], side->part, sizeof(side->part));",
        "__builtin_memset(&buf->word[COLO_START / 8], 0, sizeof(side->part));",
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
        "colo_plan_set(plan, COLO_V_DROP, COLO_R_HELD_AGAIN);",
        "colo_plan_set(plan, COLO_V_PASS, COLO_R_HELD_AGAIN);",
        COMPARE,
    ),
    Mutant(
        "what finds no room leaves",
        "include/colo_pvm.h",
        "colo_plan_set(&work->plan, COLO_V_DROP, COLO_R_STORE_FULL);",
        "colo_plan_set(&work->plan, COLO_V_PASS, COLO_R_STORE_FULL);",
        COMPARE,
    ),
    Mutant(
        "SYN-ACKs that answer different SYNs agree",
        "include/colo_flow.h",
        "if (!(flow->flags & COLO_F_SVM_SYN) || flow->s_syn_ack != p_ack)",
        "if (!(flow->flags & COLO_F_SVM_SYN))",
        ATTACKS,
    ),
    Mutant(
        "a full list of boundaries loses its oldest",
        "include/colo_flow.h",
        "for (n = COLO_BOUNDS / 2; n < COLO_BOUNDS / 4 * 3; n++)",
        "for (n = 0; n < COLO_BOUNDS / 4 * 3; n++)",
        LEADS,
    ),
    Mutant(
        "a full list of boundaries keeps no more",
        "include/colo_flow.h",
        "colo_bounds_thin(flow);\n		flow->bounds++;",
        "return;\n		flow->bounds++;",
        LEADS,
    ),
    Mutant(
        "the newest boundary is not always there",
        "include/colo_flow.h",
        "flow->strode++;",
        "if (flow->strode++)\n		return;",
        LEADS,
    ),
    Mutant(
        "a carrier takes no more than one run's frames",
        "compare.c",
        "++work->drains < COLO_DRAIN_RUNS",
        "0",
        LEADS,
    ),
    Mutant(
        "a takeover before the client's first answer loses the connection",
        "include/colo_rewrite.h",
        "if (learn || colo_off_half(slot))",
        "if (learn)",
        MIRROR,
    ),
    Mutant(
        "a takeover forgets what separates the VMs' numbers",
        "include/colo_rewrite.h",
        "return conf->mode == COLO_SOLO ? conf->lasting_epoch : epoch;",
        "return conf->mode == COLO_SOLO ? 0 : epoch;",
        PAIR,
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
        "if (flow->held || flow->ack_slot || ",
        "if (",
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
        "idle < (__s64)COLO_ENDED_NS",
        "0",
        TABLE,
    ),
    Mutant(
        "sequence numbers are compared without their wrap",
        "include/colo_parse.h",
        "#define COLO_AFTER(a, b)	((__s32)((a) - (b)) > 0)",
        "#define COLO_AFTER(a, b)	((a) > (b))",
        MODEL,
    ),
    Mutant(
        "an equal datagram verifies any number of copies",
        "include/colo_dgram.h",
        "if (--note->copies == 0)",
        "if (0)",
        COMPARE,
    ),
    Mutant(
        "a datagram noted long ago verifies",
        "include/colo_dgram.h",
        "if ((__s64)(note->at_ns - since) < 0) {",
        "if (0) {",
        COMPARE,
    ),
    Mutant(
        "a datagram of a past epoch verifies",
        "include/colo_dgram.h",
        "if (note->digest != digest || note->slot || note->epoch != epoch)",
        "if (note->digest != digest || note->slot)",
        COMPARE,
    ),
    Mutant(
        "the SVM of a daemon that decides nothing speaks to the link",
        "mirror.c",
        "	if (conf->mode == COLO_WITHHOLD)\n",
        "	if (0)\n",
        MIRROR,
    ),
    Mutant(
        "an SVM that nobody hears is kept for later",
        "mirror.c",
        "if (!conf || !colo_svm_heard(conf))",
        "if (!conf)",
        SAID,
    ),
    Mutant(
        "what another state said leaves",
        "include/colo_drain.h",
        "work->now.mode == COLO_SOLO && slot->epoch == conf->lasting_epoch;",
        "work->now.mode == COLO_SOLO;",
        SAID,
    ),
    Mutant(
        "what was said in an unknown epoch is kept",
        "include/colo_said.h",
        "epoch == COLO_EPOCH_NONE || ",
        "",
        SAID,
    ),
    Mutant(
        "a SYN is said again",
        "include/colo_said.h",
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
        "clients are not heard during a takeover",
        "mirror.c",
        "if (conf->mode != COLO_SECONDARY && conf->mode != COLO_WITHHOLD)",
        "if (conf->mode != COLO_SECONDARY)",
        SAID,
    ),
    Mutant(
        "a solo host goes on talking over the link",
        "mirror.c",
        "if (!conf || !conf->vni || conf->mode == COLO_SOLO)",
        "if (!conf || !conf->vni)",
        MIRROR,
    ),
    Mutant(
        "a host that has left the pair is heard until the timeout",
        "include/colo_link.h",
        "*heard = 0;",
        "",
        "tests/bpf/test_farewell.py",
    ),
    Mutant(
        "a datagram that is in the state is delivered again",
        "mirror.c",
        "if (!colo_is_tcp(&pkt) && epoch && (__s16)(tag - (__u16)epoch) < 0)",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "an offset outlives its epoch",
        "include/colo_rewrite.h",
        "	return make ? slot : 0;\n",
        "	return slot;\n",
        MIRROR,
    ),
    Mutant(
        "a translated number leaves the checksum as it was",
        "include/colo_option.h",
        "if (bpf_l4_csum_replace(skb, pkt->sum, 0, diff, 0))",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "the checksum of an option at an odd place is not swapped",
        "include/colo_option.h",
        "if ((at - pkt->l4) & 1)",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "a SACK edge is forgotten",
        "include/colo_option.h",
        "for (i = 0; i < 2 * COLO_SACK_BLOCKS; i++) {",
        "for (i = 0; i < 1; i++) {",
        MIRROR,
    ),
    Mutant(
        "the SVM is shown a clock it has not reached",
        "include/colo_rewrite.h",
        "if (slot->flags & COLO_OFF_TS_SENT && COLO_AFTER(tsecr, slot->ts_sent))",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "a survivor's clock runs backwards",
        "include/colo_rewrite.h",
        "if (slot->flags & COLO_OFF_TS_SEEN && COLO_AFTER(slot->ts_seen, tsval))",
        "if (0)",
        MIRROR,
    ),
    Mutant(
        "the lasting offset is applied on the link, too",
        "mirror.c",
        "return !conf || !conf->lasting || conf->mode == COLO_SECONDARY;",
        "return !conf || !conf->lasting;",
        MIRROR,
    ),
    Mutant(
        "a lasting offset is applied to the next connection",
        "include/colo_rewrite.h",
        "	if (flags & COLO_TCP_SYN)\n		colo_last.delete(key);\n",
        "",
        MIRROR,
    ),
    Mutant(
        "a GSO frame's cuts share one digest",
        "include/colo_hash.h",
        "work->cut_digest[(stop->cut - 1) & (COLO_CUTS - 1)] = stop->digest;",
        "work->cut_digest[0] = stop->digest;",
        PROTOCOLS,
    ),
    Mutant(
        "a cut keeps the sequence number of its GSO frame",
        "include/colo_hold.h",
        "	seq = bpf_htonl(seq);\n	__builtin_memcpy(&frame->data[l4 + 4], &seq, 4);\n",
        "",
        PROTOCOLS,
    ),
    Mutant(
        "a held frame keeps the sum of its pseudo-header",
        "include/colo_pvm.h",
        "	colo_hold_sum(frame, pkt, copy.tag, tcp_len, IPPROTO_TCP);\n",
        "",
        PROTOCOLS,
    ),
    Mutant(
        "fragments are equal wherever they belong",
        "include/colo_dgram.h",
        "pkt->fragment << 8 | pkt->proto",
        "pkt->proto",
        PROTOCOLS,
    ),
    Mutant(
        "tags are no part of a flow",
        "include/colo_parse.h",
        "	key->vlan = pkt->vlan;\n	key->inner_vlan = pkt->inner_vlan;\n",
        "",
        PROTOCOLS,
    ),
    Mutant(
        "a protocol nobody knows is waved through",
        "include/colo_parse.h",
        "return pkt->ethertype == ETH_P_ARP || pkt->ethertype == COLO_ETH_RARP ||",
        "return 1 || pkt->ethertype == COLO_ETH_RARP ||",
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
        "a reset of the SVM is nobody's business",
        "compare.c",
        "!(flow->flags & COLO_F_RESET))\n",
        "0)\n",
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
        "bytes below the anchor have to be verified again",
        "include/colo_flow.h",
        "	flow->verified = flow->p_high;\n",
        "	flow->verified = flow->p_high - 1;\n",
        ATTACKS,
    ),
    Mutant(
        "a full table lets the client's SYN through",
        "mirror.c",
        "return pkt->flags & COLO_TCP_SYN ? -1 : 0;",
        "return 0;",
        TABLE,
    ),
    Mutant(
        "a new epoch's frame overtakes the old one's",
        "include/colo_pvm.h",
        "!flow->head && !flow->emitter) {",
        "!flow->emitter) {",
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
        "a turn that is undone has lost its offsets",
        "include/colo_rewrite.h",
        "slot = &off->slot[epoch & 1];",
        "slot = &off->slot[0];",
        ATTACKS,
    ),
    Mutant(
        "what a SYN offers is not compared",
        "include/colo_flow.h",
        "if (flow->s_offer != flow->p_offer) {",
        "if (0) {",
        ATTACKS,
    ),
    Mutant(
        "an ICMP error quotes the client's numbers to the VM",
        "include/colo_rewrite.h",
        "		return colo_put(skb, quoted, quoted->l4 + 4, quoted->seq, quoted->seq + delta);",
        "		return 0;",
        QUOTED,
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
        "include/colo_drain.h",
        "__u32 part = (verified - slot->start) & ~3;",
        "__u32 part = (verified - slot->start + 3) & ~3;",
        PROTOCOLS,
    ),
    Mutant(
        "bytes of the SVM that differ verify",
        "include/colo_svm.h",
        "if ((ours ^ buf->word[i]) & ~colo_from_byte(bytes))",
        "if (0)",
        PROTOCOLS,
    ),
]


def _planted(mutant: Mutant, directory: Path) -> Path:
    """A copy of the sources with the fault in it."""
    sources = directory / "bpf"
    shutil.copytree(ROOT / "bpf", sources)
    path = sources / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"mutant {mutant.name!r}: its place is not in {mutant.file}, or not once")
    path.write_text(text.replace(mutant.old, mutant.new))
    return sources


def _run(killer: str, sources: Path) -> int:
    """Exit code of the test, on these sources."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:warnings", killer]
    environment = {
        **os.environ,
        "COLO_EBPF_BPF": str(sources),
        "COLO_MODEL_QUICK": "1",
        "COLO_TESTS_BESIDE": "1",
    }
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return done.returncode


def main(words: list[str]) -> int:
    """All of them, or those whose name has one of the words; 1 if any survives."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    for killer in sorted({mutant.killer for mutant in chosen}):
        if _run(killer, ROOT / "bpf"):
            raise SystemExit(f"{killer} fails without any mutant")
    survivors = 0
    for number, mutant in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory(prefix="colo-mutant") as directory:
            killed = _run(mutant.killer, _planted(mutant, Path(directory))) == 1
        survivors += not killed
        word = "killed" if killed else "SURVIVES"
        print(f"[{number}/{len(chosen)}] {word}: {mutant.name} ({mutant.killer})", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
