# SPDX-License-Identifier: GPL-2.0-only
"""What runs on a device's hooks, as the kernel tells it, whatever holds it there."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from colo_ebpf.datapath.bpf import syscalls
from colo_ebpf.datapath.net import netdev, tcx
from colo_ebpf.datapath.net.hooks import Hook


def _json(*argv: str) -> Any:
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20)
    return json.loads(done.stdout or "[]")


def numbers(device: str, hook: Hook) -> dict[str, int]:
    """Ids of the programs by name, in the order they run: TCX links, then clsact filters."""
    found = {}
    if tcx.available():
        for number in syscalls.programs_at(netdev.index_of(device), tcx.TYPE[hook]):
            found[str(_json("bpftool", "-j", "prog", "show", "id", str(number))["name"])] = number
    for row in _json("tc", "-j", "filter", "show", "dev", device, hook.value):
        if "options" in row:
            found[row["options"]["bpf_name"]] = int(row["options"]["prog"]["id"])
    return found


def attached(device: str) -> dict[str, list[str]]:
    """Names of the programs by hook."""
    every = {hook.value: list(numbers(device, hook)) for hook in Hook}
    return {hook: names for hook, names in every.items() if names}
