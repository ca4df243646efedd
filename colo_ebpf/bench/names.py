# SPDX-License-Identifier: GPL-2.0-only
"""Names of lanes and measures: targets are judged by them."""

from __future__ import annotations

LANES = "lanes"  # the part
PLAIN, TWO, QEMU, OURS = "plain", "plain, two servers", "qemu", "ours"
LIMIT = "limit"  # ours, but nothing is compared

BULK_DOWNLOAD = "bulk download"
BULK_UPLOAD = "bulk upload"
REQUEST_1B = "request/response 1 B"
REQUEST_1KB = "request/response 1 KB"
REQUEST_64KB = "request/response 64 KB"
REQUEST_AWAKE = "request/response 1 B, cores kept awake"
CONNECTIONS = "new connections"
CONNECTIONS_16 = "new connections, 16 at once"
REFUSED = "connections the server resets, 16 at once"
UDP_1 = "UDP 64 B, 1 outstanding"
UDP_8 = "UDP 64 B, 8 outstanding"
MANY = "request/response 100 B, {:,} connections"
OFFSETS = "timestamps on, different offsets: connections"

CPU_PER_GB = "CPU per GB"
CPU_PER_PACKETS = "CPU per 100,000 packets"
BEYOND = "{} beyond two servers"
REQUESTS = "checkpoint requests, {}"
P50, P99, P999 = "{} p50", "{} p99", "{} p99.9"

LATENCY_PLOT = f"{REQUEST_1B}: latency"

TIMELINE_PLOT = "timeline of a failover, host killed at 0"
KILL, CHECKPOINT = "the kill", "checkpoint loaded"  # moments in it
