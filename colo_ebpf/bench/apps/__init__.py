# SPDX-License-Identifier: GPL-2.0-only
"""The applications part of the benchmarks: real servers in a real guest, asked by real clients."""
