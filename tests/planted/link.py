# SPDX-License-Identifier: GPL-2.0-only
"""Faults of the mirror, the link, and what outlives the daemon."""

from __future__ import annotations

from tests.planted.mutant import Mutant

COMPARE = "tests/bpf/test_compare.py"
MIRROR = "tests/bpf/test_mirror.py"
SAID = "tests/bpf/test_said.py"
BEAT = "tests/bpf/test_beat.py"
HEARD = "tests/bpf/test_heard.py"
IPV6_LINK = "tests/bpf/test_ipv6_link.py"
EXITS = "tests/bpf/test_exits.py"

MUTANTS = (
    Mutant(
        "any pairing's frames are taken",
        "include/colo_link.h",
        "if ((key.tunnel_id & ~(COLO_NICS - 1)) != conf->vni ||\n	    !colo_ip_equal",
        "if (!colo_ip_equal",
        MIRROR,
    ),
    Mutant(
        "frames of every address that begins as the peer's are taken",
        "include/colo_link.h",
        " |\n		 (one[3] ^ other[3])",
        "",
        IPV6_LINK,
    ),
    Mutant(
        "the kernel chooses the address that frames come from",
        "include/colo_link.h",
        "	__builtin_memcpy(key.local_ipv6, conf->local_ip, sizeof(key.local_ipv6));\n",
        "",
        IPV6_LINK,
    ),
    Mutant(
        "a held frame keeps the sum of its pseudo-header",
        "include/colo_xmit.h",
        "	if (slot->tcp_off)\n		colo_slot_sum(slot, frame, bytes);\n",
        "",
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
        "clients are not heard during a takeover",
        "mirror.c",
        "if (conf->mode != COLO_SECONDARY && conf->mode != COLO_WITHHOLD)",
        "if (conf->mode != COLO_SECONDARY)",
        SAID,
    ),
    Mutant(
        "a plane that has left its pair beats on",
        "include/colo_link.h",
        "if (!conf || !conf->vni)",
        "if (!conf)",
        BEAT,
    ),
    Mutant(
        "a plane beats on although its daemon is gone",
        "include/colo_link.h",
        "if (!conf->park_ifindex || now >= *(volatile __u64 *)until)",
        "if (!conf->park_ifindex)",
        BEAT,
    ),
    Mutant(
        "a plane beats as fast as its line lets it",
        "include/colo_link.h",
        "skb->priority = COLO_LINE_BEAT;",
        "skb->priority = COLO_LINE_NEW;",
        BEAT,
    ),
    Mutant(
        "a daemon cannot tell that its plane beats",
        "include/colo_link.h",
        "*last = now;",
        "*last = 0;",
        BEAT,
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
        "a beacon is no larger than the daemon hands it over",
        "upkeep.c",
        "bpf_skb_change_tail(skb, bytes, 0))",
        "!bytes)",
        BEAT,
    ),
    Mutant(
        "the lasting offset is applied on the link, too",
        "lasting.c",
        "return !conf || !conf->lasting || conf->mode == COLO_SECONDARY;",
        "return !conf || !conf->lasting;",
        MIRROR,
    ),
    Mutant(
        "who was silent is not heard before the next tick",
        "include/colo_link.h",
        "ear->tick != tick || *(volatile __u64 *)heard < ear->at_ns",
        "ear->tick != tick",
        HEARD,
    ),
    Mutant(
        "a plane is heard once and never again",
        "include/colo_link.h",
        "ear->tick != tick || *(volatile __u64 *)heard < ear->at_ns",
        "*(volatile __u64 *)heard < ear->at_ns",
        HEARD,
    ),
    Mutant(
        "nobody sees that the table is swept",
        "upkeep.c",
        "	return colo_run_over(skb, COLO_PROG_AGE, COLO_R_RUN, 0);\n",
        "	return 0;\n",
        EXITS,
    ),
)
