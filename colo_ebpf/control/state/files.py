# SPDX-License-Identifier: GPL-2.0-only
"""Small values of the daemon in files that outlive it: the secondary's note, the highest
generation of the record, an operator's pause.

What they mean is said where the values are (`checkpoint.secondary`, `decision.record`,
`peer.pause`). Here they are only read and written.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import ArbiterError, ControlError

_log = logging.getLogger(__name__)
_DIGITS = 20  # of a generation: all files have the same length
_PAUSE_BYTES = 512  # which a disk writes all or none of


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    instance: str
    note: Note


class NoteFile:
    """`<run_dir>/turns.json`. It belongs to one instance: a note of another one says nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._complained = False

    def load(self, instance: str) -> Note | None:
        """The note of this instance, if there is one that can be read."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return None
        return kept.note if kept.instance == instance else None

    def keep(self, instance: str, note: Note) -> None:
        """Replace it. A note that cannot be written costs a checkpoint after a restart."""
        try:
            atomic.put(self._path, msgspec.json.encode(_Kept(instance, note)))
        except OSError as e:
            if not self._complained:
                _log.warning("cannot keep the epoch's note: %s: %s", self._path, e)
            self._complained = True
        else:
            self._complained = False


class GenerationFloor:
    """The highest generation this host has seen, in a file that outlives reboots.

    An arbiter restored from a backup would bring back an old generation: it is refused. The file
    is made beforehand and written in place, for a takeover must not need room on a file system.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "generation"
        self.file = atomic.RetriedFile(self._path, "the generation is forgotten at a restart")
        self.value = self._load()
        self._keep()

    def _load(self) -> int:
        try:
            return int(self._path.read_text("ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as e:
            raise ControlError(
                f"{self._path} does not hold a generation ({e}): if no VM of this name runs "
                "anywhere, remove it"
            ) from e

    def check(self, record: Record) -> None:
        """Raise ArbiterError if the record is older than one this host has seen."""
        if record.generation < self.value:
            raise ArbiterError(
                f"the arbiter says generation {record.generation}, but generation {self.value} "
                "was seen here: it was restored or replaced; end every VM of this name, then "
                f"remove {self._path}"
            )

    def note(self, record: Record) -> None:
        """Keep the generation, durably, before anything is done on the strength of it.

        If that fails it is done all the same: the arbiter has said it, and a VM that nobody serves
        is worse than a file that an old arbiter could mislead after a restart.
        """
        if record.generation > self.value:
            self.value = record.generation
            self._keep()

    def _keep(self) -> None:
        self.file.keep(f"{self.value:<{_DIGITS}}\n".encode())


class PauseFile:
    """`<state_dir>/pause`. It is made beforehand and written in place: it needs no room then."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "pause"
        self.file = atomic.RetriedFile(self._path, "a restart of both daemons will forget a pause")

    def load(self) -> Pause:
        """What was kept. ControlError if it cannot be read."""
        try:
            pause = msgspec.json.decode(self._path.read_bytes(), type=Pause)
        except FileNotFoundError:
            pause = Pause()
        except (OSError, msgspec.DecodeError) as e:
            raise ControlError(
                f"{self._path} does not say whether protection is paused ({e}): remove it, then "
                "say `colo-ebpf pause` again if it was"
            ) from e
        self.keep(pause)
        return pause

    def keep(self, pause: Pause) -> None:
        """Durably, as soon as it can be written."""
        self.file.keep(msgspec.json.encode(pause).ljust(_PAUSE_BYTES))
