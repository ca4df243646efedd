# SPDX-License-Identifier: GPL-2.0-only
"""Faults of a real pair; docs/reference/failure-scenarios.md is their table."""
