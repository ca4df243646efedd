# SPDX-License-Identifier: GPL-2.0-only
"""BPF programs and maps: compiled, kept, loaded, pinned, and the calls for that.

`abi` mirrors the header that C and Python share.
Nothing here knows of network devices or of what the maps of a pair mean.
"""
