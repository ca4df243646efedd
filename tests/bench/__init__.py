# SPDX-License-Identifier: GPL-2.0-only
"""The benchmarks themselves, with loads too small to tell anything."""
