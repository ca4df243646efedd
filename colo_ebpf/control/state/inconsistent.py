# SPDX-License-Identifier: GPL-2.0-only
"""Whether the images of this host are a copy that was never finished, in a file that outlives
reboots.

While a replica is made the images hold blocks of two moments: a guest that boots from them finds a
broken file system. The record never names such a host, but an operator who lost the other one may.
Once a record names the replica its images were equal, and have been a disk of one moment since.
"""

from __future__ import annotations

import logging
from pathlib import Path

from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import ControlError, StorageError

_log = logging.getLogger(__name__)


class InconsistentImages:
    """`<state_dir>/unfinished`: the instance that is being made of the images."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "unfinished"

    def begin(self, instance: str) -> None:
        """Before anything can be copied. ControlError: then nothing must be."""
        atomic.write(self._path, f"{instance}\n".encode())

    def learn(self, record: Record) -> None:
        """A record was read. A note that cannot be taken back keeps no VM from taking over; an
        operator is asked about it one day."""
        try:
            instance = self._instance()
            if instance and record.names(instance):
                atomic.remove(self._path)
        except ControlError as e:
            _log.warning("%s", e)

    def check(self) -> None:
        """Before a VM is started from the images. StorageError if they are unfinished."""
        instance = self._instance()
        if instance:
            raise StorageError(
                f"the images here are an unfinished copy: the replica {instance} was never whole. "
                "Use the other host's; if those are lost for good, remove "
                f"{self._path} and expect a broken file system"
            )

    def _instance(self) -> str:
        try:
            return self._path.read_text("ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as e:
            raise ControlError(
                f"{self._path} does not say whether the images here are whole ({e})"
            ) from e
