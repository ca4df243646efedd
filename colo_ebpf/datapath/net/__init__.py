# SPDX-License-Identifier: GPL-2.0-only
"""Network devices of this host: links, addresses, namespaces, hooks and filters.

Everything goes through netlink and touches only what is ours.
What the programs on those hooks do is not known here.
"""
