# SPDX-License-Identifier: GPL-2.0-only
"""systemd's notify protocol (sd_notify(3)): ready, status, watchdog. Silent without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Says how the daemon is; `watchdog_ns` is 0 if nobody watches."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        self.watchdog_ns = int(usec) * 1000 if watched and usec.isdigit() else 0
        self._fed_ns = 0

    def say(self, **values: str | int) -> None:
        """Send assignments, such as ``READY=1`` or ``STATUS=...``."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in values.items())
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as s,
        ):
            s.sendto(text.encode(), address)

    def feed(self, now_ns: int) -> None:
        """Feed the watchdog, at most four times in its period."""
        if self.watchdog_ns and now_ns - self._fed_ns >= self.watchdog_ns // 4:
            self._fed_ns = now_ns
            self.say(WATCHDOG=1)
