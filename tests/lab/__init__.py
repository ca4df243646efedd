# SPDX-License-Identifier: GPL-2.0-only
"""Tests on a lab. One that was killed may have left its lab up: each begins with a clean one."""

from __future__ import annotations

import subprocess
import sys

from colo_ebpf.lab.lab import Lab


def clean(lab: Lab) -> Lab:
    """The lab, with nothing of its name left."""
    lab.down()
    return lab


def cli(lab: Lab, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`colo-ebpf` on a host of the lab."""
    place = lab.places[host]
    enter = ["nsenter", f"--net=/run/netns/{place.namespace}"]
    return subprocess.run(
        [*enter, sys.executable, "-m", "colo_ebpf.cli.main", *words, "--config", str(place.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
