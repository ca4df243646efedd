# SPDX-License-Identifier: GPL-2.0-only
"""The same loads on the same guests in several lanes: plain, QEMU's proxy, ours.

A lane is a client, a server and what is between them; here are the lanes and their loads.
What a figure promises is not judged here.
"""
