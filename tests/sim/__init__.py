# SPDX-License-Identifier: GPL-2.0-only
"""Both hosts' real decision cores in virtual time, with toy VMs, under random faults."""
