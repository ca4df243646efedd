# SPDX-License-Identifier: GPL-2.0-only
"""Names of the applications' lanes and measures: targets are judged by them."""

from __future__ import annotations

PART = "applications"
ALONE, TWINS, LOCKSTEP, OURS = "alone", "twins", "lockstep", "ours"
COMPARE, PERIODIC = "ours-compare", "ours-periodic"
STOCK, STOCK_500 = "stock", "stock-500"
FIXED = (COMPARE, PERIODIC)  # ours, with the way to take checkpoints fixed
LANES = (ALONE, TWINS, LOCKSTEP, OURS, *FIXED, STOCK, STOCK_500)
STOCKS = (STOCK, STOCK_500)
MULTIFD = "stock, multifd"

# Of a load, besides its rate, which has the load's own name.
P50, P99, LONGEST = "{}: p50", "{}: p99", "{}: longest"
CHECKPOINTS = "{}: checkpoints"
NEEDLESS = "{}: checkpoints beyond the date's"
PAUSE_P50, PAUSE_P99, STOPPED = "{}: pause p50", "{}: pause p99", "{}: stopped"

PAUSE = "checkpoint pause, {} MiB dirtied"
PAUSE_PLOT = "checkpoint pause and dirtied memory"
RELAY = "{}, one VM"  # what the relay of lane lockstep costs: with one VM behind it, and without
DIRECT, RELAYED = "direct", "through the relay"
BROKE = "broke: "  # so the note of a row begins whose load ended badly
