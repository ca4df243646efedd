# SPDX-License-Identifier: GPL-2.0-only
"""What a whole pair of real guests costs: checkpoints, stalls, failovers, idling.

Our own pair and QEMU's own COLO are set up here and measured in turn.
What a figure promises is not judged here.
"""
