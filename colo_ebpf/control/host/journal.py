# SPDX-License-Identifier: GPL-2.0-only
"""The log: to systemd's journal with priority and fields if our stderr goes there, else to stderr.

    journalctl -p warning COLO_VM=web

The journal's native protocol is one datagram per entry, of lines `FIELD=value`; a value of several
lines is preceded by its length. Nothing waits for the journal: what it does not take at once goes
to stderr, with the priority before it as sd-daemon(3) has it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "colo-ebpf"
_MESSAGE_BYTES = 16384
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def begin(**fields: str) -> bool:
    """Log from now on, with these fields. True: to the journal."""
    to_journal = is_journal(sys.stderr.fileno(), os.environ)
    handler: logging.Handler
    if to_journal:
        handler = JournalHandler(fields)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        text = "%(asctime)s.%(msecs)03d %(message)s"
        handler.setFormatter(logging.Formatter(text, datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return to_journal


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """systemd.exec(5): the variable names the stream, which may have been redirected since."""
    with contextlib.suppress(OSError):
        stat = os.fstat(fd)
        return environment.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
    return False


def priority(level: int) -> int:
    """syslog's, of a level of `logging`."""
    return next((one for least, one in _PRIORITIES if level >= least), _DEBUG)


class JournalHandler(logging.Handler):
    """Entries with these fields."""

    def __init__(self, fields: Mapping[str, str], path: str = SOCKET) -> None:
        super().__init__()
        self._path = path
        self._fields = {"SYSLOG_IDENTIFIER": IDENTIFIER, **fields}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """One entry; never raises."""
        try:
            text = self.format(record)
            number = priority(record.levelno)
            fields = {"MESSAGE": text, "PRIORITY": str(number), **self._fields}
            try:
                self._socket.sendto(entry(fields), self._path)
            except OSError:
                print(f"<{number}>{text}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """No more."""
        self._socket.close()
        super().close()


def entry(fields: Mapping[str, str]) -> bytes:
    """The datagram."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="replace")[:_MESSAGE_BYTES]
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data)
        else:
            parts.append(name.encode() + b"=" + data)
    return b"\n".join(parts) + b"\n"
