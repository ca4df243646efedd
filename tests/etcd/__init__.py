# SPDX-License-Identifier: GPL-2.0-only
"""The arbiters, the one in etcd against real members on loopback."""
