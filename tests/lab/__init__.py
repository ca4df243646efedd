# SPDX-License-Identifier: GPL-2.0-only
"""Tests on a lab. One that was killed may have left its lab up: each begins with a clean one."""

from __future__ import annotations

from colo_ebpf.lab.lab import Lab


def clean(lab: Lab) -> Lab:
    """The lab, with nothing of its name left."""
    lab.down()
    return lab
