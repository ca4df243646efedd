# SPDX-License-Identifier: GPL-2.0-only
"""The sealed link on a kernel that can seal it: Debian's, in a QEMU of its own."""
