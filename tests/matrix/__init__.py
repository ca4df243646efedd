# SPDX-License-Identifier: GPL-2.0-only
"""Faults of a real pair, one after the other: docs/failure-scenarios.md is their table."""
