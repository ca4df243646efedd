# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts and a client in network namespaces of one machine, to try the product out."""
