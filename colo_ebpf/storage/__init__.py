# SPDX-License-Identifier: GPL-2.0-only
"""Disk images and what is served of them over NBD.

Everything is looked at before QEMU opens it, so that a refusal loses nothing.
This package alone imports nbd; it starts no QEMU and decides nothing.
"""
