# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon needs of this host: watchdog, systemd, journal, capabilities, commands.

Each module wraps one service of the system and raises the project's own errors.
Nothing here knows of pairs, checkpoints or the record.
"""
