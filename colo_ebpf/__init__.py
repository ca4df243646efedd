# SPDX-License-Identifier: GPL-2.0-only
"""COLO in the kernel: a virtual machine that goes on serving through the death of its host."""

__version__ = "0.1.0"
