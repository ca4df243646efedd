# SPDX-License-Identifier: GPL-2.0-only
"""Files of the daemon that outlive it.

Each is written whole or not at all, and is there after a power cut.
What follows from their contents is decided elsewhere, by functions that open no file.
"""
