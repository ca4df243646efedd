# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon of a protected pair says of itself, for tests of who reads it.

A lab test holds its keys against what a daemon says (`tests/lab/test_daemon.py`).
"""

from __future__ import annotations

import copy
from typing import Any

_LAST = {"ago_ms": 500.0, "epoch": 9, "cause": "mismatch", "pause_ms": 12.5, "reaction_ms": 1.5}
_STATUS: dict[str, Any] = {
    "vm": "web",
    "host": "a",
    "state": "primary",
    "since_ms": 7_262_000.0,
    "sentence": "primary of a protected pair",
    "role": "primary",
    "protected": True,
    "unprotected_why": "",
    "lacks": "",
    "paused": False,
    "pause": {"until_s": 0, "why": "", "sentence": ""},
    "mode": "primary",
    "hooks": "clsact",
    "epoch": 9,
    "phase": "open",
    "record": {"generation": 3, "kind": "paired", "text": "paired a/1 (primary), b/2 (secondary)"},
    "vm_process": {
        "instance": "a/1",
        "pid": 1234,
        "alive": True,
        "started_as": "primary",
        "accel": "kvm",
        "accel_why": "it works",
    },
    "guest": {"powered_off": False, "panicked": False, "reboots": 0},
    "checkpoints": {
        "stage": "idle",
        "by_cause": {"mismatch": 2},
        "total": 2,
        "unproven": 0,
        "last": _LAST,
        "recent": [_LAST | {"ago_ms": 90_000.0, "pause_ms": 30.0}, _LAST],
        "loaded_epoch": 9,
        "wanted": "",
        "mode": "compare",
        "mode_why": "as configured",
        "patience": {},
        "for_age": {},
        "longest_epoch_ms": 60_000.0,
        "pauses": {"up_to": [[0.05, 2]], "count": 2, "sum_s": 0.055},
        "reactions": {"up_to": [[0.05, 2]], "count": 2, "sum_s": 0.003},
    },
    "held": {"frames": 0, "bytes": 0, "slots": 4096, "oldest_ms": None},
    "packets": [],
    "live": {},
    "peer": {
        "name": "b",
        "state": "secondary",
        "health": "well",
        "link_heard": True,
        "management_heard": True,
        "plane_heard": True,
        "link_age_ms": 12.0,
        "timeout_ms": 150.0,
        "link_longest_ms": 40.0,
        "long_silences": {"link": 0, "management": 0},
        "management_age_ms": 14.0,
        "plane_age_ms": 3.0,
        "lacks": "",
        "refused": {},
        "error": "",
        "arbiter_error": "",
    },
    "key": {
        "speaks": "0123456789abcdef",
        "hears": ["0123456789abcdef"],
        "peer_hears": ["0123456789abcdef"],
        "changed": True,
    },
    "link": {
        "security": "ipsec",
        "agreed": True,
        "seals_with": "0x1234abcd",
        "opens": "0x5678cdef",
        "key_age_ms": 3_600_000.0,
        "refused": {},
        "warning": "",
    },
    "disk": "replicated",
    "overlays": [],
    "healed": "",
    "last_attempt": {"given_up": "", "qemu_said": ""},
    "arbiter_error": "",
    "unwritten": [],
    "pairings_failed": 0,
    "step": None,
    "progress": None,
    "history": [],
}


def status(peer: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    """With other values in places; `peer`: of those, what differs of the peer."""
    found = copy.deepcopy(_STATUS) | change
    found["peer"] |= peer or {}
    return found


def alone(**change: Any) -> dict[str, Any]:
    """Of a VM that serves on a, while nothing is heard of b."""
    silent: dict[str, Any] = {
        "state": None,
        "link_heard": False,
        "management_heard": False,
        "plane_heard": False,
        "link_age_ms": 75_000.0,
    }
    solo = {"state": "solo", "role": "solo", "protected": False, "sentence": "alone, unprotected"}
    return status(silent, **(solo | {"disk": "whole"} | change))
