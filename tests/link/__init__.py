# SPDX-License-Identifier: GPL-2.0-only
"""The sealed link, and reserved disks, on a kernel that has both: Debian's, in a QEMU."""
