# SPDX-License-Identifier: GPL-2.0-only
"""What the daemons of a pair tell each other, and how it goes over the wire.

`state` is the value, `envelope` seals it, `transport` sends and receives it.
Nothing here decides what follows from what the peer says.
"""
