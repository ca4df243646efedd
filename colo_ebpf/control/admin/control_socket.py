# SPDX-License-Identifier: GPL-2.0-only
"""The control socket: one line of JSON in, one line of JSON out, on `<run_dir>/ctl.sock`.

Requests: ``{"command": name, ...}``, with the words that the command takes. Answers:
``{"ok": value}`` or ``{"error": text}``. This is the end that asks, of commands that have to be
quick: nothing of the daemon is imported here. The other end is `server`.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from colo_ebpf.errors import ControlError, NoDaemonError, NotInTimeError

ANSWER_S = 5.0  # unless something else is said
_REPLY_BYTES = 4 << 20


def path_in(run_dir: str | Path) -> Path:
    """Where the daemon with this run directory is asked."""
    return Path(run_dir) / "ctl.sock"


class Conversation:
    """Requests to a running daemon over one connection.

    ControlError if it says no, NoDaemonError if there is none, NotInTimeError if it says nothing.
    """

    def __init__(self, path: Path, timeout_s: float | None = None) -> None:
        self._path, self._timeout_s = path, ANSWER_S if timeout_s is None else timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout_s)

    def __enter__(self) -> Self:
        with self._wrapped():
            self._socket.connect(str(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: str, **words: int | str) -> Any:
        """One request. Raises ControlError with what the daemon answered, if it refused."""
        request = {"command": command, **words}
        with self._wrapped():
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            reply = _reply(self._socket)
        if "error" in reply:
            raise ControlError(str(reply["error"]))
        return reply["ok"]

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        path = self._path
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError) as e:
            text = f"no daemon answers on {path}: is it running, is [host] right?"
            raise NoDaemonError(text) from e
        except (ConnectionResetError, BrokenPipeError) as e:
            raise NoDaemonError(f"the daemon on {path} ended before it answered") from e
        except TimeoutError as e:
            text = f"the daemon on {path} does not answer within {self._timeout_s} s"
            raise NotInTimeError(text) from e
        except OSError as e:
            raise ControlError(f"{path}: {e.strerror}") from e


def ask(path: Path, command: str, timeout_s: float | None = None, **words: int | str) -> Any:
    """One request to a running daemon; fails as a conversation does."""
    with Conversation(path, timeout_s) as conversation:
        return conversation.ask(command, **words)


def _reply(s: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and len(data) < _REPLY_BYTES:
        part = s.recv(65536)
        if not part:
            break
        data += part
    try:
        return dict(json.loads(data))
    except ValueError as e:
        text = f"the daemon ended before it had answered ({len(data)} bytes came)"
        raise NoDaemonError(text) from e
