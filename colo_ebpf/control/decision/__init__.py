# SPDX-License-Identifier: GPL-2.0-only
"""What this daemon should do now, as pure functions of a snapshot.

Here are the snapshot, the actions that may follow from it, and every rule between the two.
No clock, file, socket, process or task is reached from here: a decision is told what is so.
"""
