# SPDX-License-Identifier: GPL-2.0-only
"""The benchmarks: what protection costs, beside the peers, in one run on one machine.

`suite` runs the parts in turn, `results` is what they fill, `targets` judges it, `report` draws it.
Only ratios of readings that were taken in turn are compared: machines are noisy.
"""
