# SPDX-License-Identifier: GPL-2.0-only
"""VMs of other hypervisors as configurations: what they say, and what cannot be carried over.

Pure: text in, text and remarks out. Commands and files are `colo_ebpf.cli.importing`.
"""
