# SPDX-License-Identifier: GPL-2.0-only
"""The deadlines of a configuration that says nothing of them."""

from __future__ import annotations

from colo_ebpf.config.schema import Checkpoint, Timing
from colo_ebpf.control import settings

DEADLINES = settings.deadlines(Timing(), Checkpoint())
