# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus' own tool for metrics and rules."""

from __future__ import annotations

import subprocess

from tests.capabilities import promtool_path, require


def promtool(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run it; the test is skipped where there is none."""
    require("promtool")
    return subprocess.run(
        [promtool_path(), *words],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
