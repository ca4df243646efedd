# SPDX-License-Identifier: GPL-2.0-only
"""The secondary's note (`epoch_secondary.Note`) in a file that outlives the daemon.

It belongs to one instance: a note of another one says nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from colo_ebpf.control.epoch_secondary import Note

_log = logging.getLogger(__name__)


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    instance: str
    note: Note


class NoteFile:
    """`<run_dir>/turns.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, instance: str) -> Note | None:
        """The note of this instance, if there is one that can be read."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return None
        return kept.note if kept.instance == instance else None

    def keep(self, instance: str, note: Note) -> None:
        """Replace it. A note that cannot be written costs a checkpoint after a restart."""
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(_Kept(instance, note)))
            temporary.replace(self._path)
        except OSError as e:
            _log.warning("cannot keep the epoch's note: %s: %s", self._path, e)
