# SPDX-License-Identifier: GPL-2.0-only
"""Runs inside: every scenario, one after the other; each tells on the console how it has ended."""

from __future__ import annotations

import json
import traceback

from tests.link import programs, reservations, scenarios, tunnels

MARK = "scenario "  # begins the line that tells it


def main() -> None:
    """Of one boot."""
    for one in (*scenarios.ALL, *tunnels.ALL, *reservations.ALL, *programs.ALL):
        wrong = ""
        try:
            one()
        except Exception:
            wrong = traceback.format_exc()
        print(MARK + json.dumps({"name": one.__name__, "wrong": wrong}), flush=True)
