# SPDX-License-Identifier: GPL-2.0-only
"""What the programs in the kernel cost, one by one and alone.

Frames are handed to them inside the kernel; there are no hosts and no guests.
What a figure promises is not judged here.
"""
