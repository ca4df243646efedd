# SPDX-License-Identifier: GPL-2.0-only
"""Protection paused by an operator: the VM does not change hosts, and no pair is begun.

Both daemons keep the newest word, and repeat it to each other: it may be said on either host, and
outlives restarts of both.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from colo_ebpf.control import durable
from colo_ebpf.errors import ControlError


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest word of an operator; each is numbered above those before."""

    number: int = 0
    on: bool = False

    def newer_than(self, other: Pause) -> bool:
        """Of two that were said at the same time, on hosts that did not hear each other: on."""
        return (self.number, self.on) > (other.number, other.on)


class PauseFile:
    """`<state_dir>/pause`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "pause"

    def load(self) -> Pause:
        """What was kept. ControlError if it cannot be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Pause)
        except FileNotFoundError:
            return Pause()
        except (OSError, msgspec.DecodeError) as e:
            raise ControlError(
                f"{self._path} does not say whether protection is paused ({e}): remove it, then "
                "say `colo-ebpf pause` again if it was"
            ) from e

    def keep(self, pause: Pause) -> None:
        """Durably. ControlError if it cannot be written."""
        durable.write(self._path, msgspec.json.encode(pause))
