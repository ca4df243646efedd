# SPDX-License-Identifier: GPL-2.0-only
"""What the daemons of a host say, for monitoring: a process of its own that only asks them."""
