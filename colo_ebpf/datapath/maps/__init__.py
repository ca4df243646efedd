# SPDX-License-Identifier: GPL-2.0-only
"""The maps of a pair as values: held frames, sequence offsets, counters, captures.

Maps are read through their pins, so a look at them needs no daemon.
Nothing is loaded or attached here.
"""
