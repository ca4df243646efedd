# SPDX-License-Identifier: GPL-2.0-only
"""The C programs of the benchmarks: loads, servers and relays.

They are compiled when a part needs them.
There is no Python here.
"""
