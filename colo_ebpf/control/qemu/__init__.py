# SPDX-License-Identifier: GPL-2.0-only
"""QEMU: its command line, processes, monitors, block graph, logs and taps.

All that is known of QEMU's behaviour is in this package.
Nothing here decides whether a VM may run: it does what it is told and says what it saw.
"""
