# SPDX-License-Identifier: GPL-2.0-only
"""What operators ask of a daemon, over its control socket, and what it answers.

The client's half needs no daemon; the server's half reads the daemon and hands requests to it.
Requests are checked and begun here; what they lead to is decided in `decision`.
"""
