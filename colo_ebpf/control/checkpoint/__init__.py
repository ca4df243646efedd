# SPDX-License-Identifier: GPL-2.0-only
"""The state machines of a checkpoint on both hosts, and the rules of when one is due.

They take events and times and give back what to do next.
No clock, file, socket, process or task is reached from here.
"""
