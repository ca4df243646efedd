# SPDX-License-Identifier: GPL-2.0-only
"""One daemon without its clock, sockets and tasks: facts in, effects out.

It ties decisions and checkpoints to the VM, the data plane and the peer, through `interfaces`.
What is behind those interfaces (QEMU, kernel, arbiter, files) may not be imported here.
"""
