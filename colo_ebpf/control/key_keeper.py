# SPDX-License-Identifier: GPL-2.0-only
"""Follows the key files while the daemon runs: the pair's key is changed without a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from colo_ebpf.control.core.core import Core
from colo_ebpf.control.link_security import Seals
from colo_ebpf.control.peer.envelope import Seal
from colo_ebpf.control.peer.key_ring import KeyRing, name_of
from colo_ebpf.control.peer.state import Speech
from colo_ebpf.errors import ConfigError

_log = logging.getLogger(__name__)
_LOOK_EVERY_NS = 1_000_000_000
_Stamp = tuple[int, int, int]


def _stamp(path: Path) -> _Stamp | None:
    """Another one if the file is another one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_mode


class KeyKeeper:
    """Of one daemon. What it hears, what it speaks and what seals the link follow from the files
    and from what the peer hears."""

    def __init__(
        self,
        files: tuple[Path, ...],
        read: Callable[[], KeyRing],
        core: Core,
        *,
        seal: Seal,
        speech: Speech,
        link: Seals | None,
    ) -> None:
        """`read`: what is in `files`. Raises ConfigError."""
        self._files, self._read, self._core = files, read, core
        self._seal, self._speech, self._link = seal, speech, link
        self._stamps = self._look_at_files()
        self._due_ns = 0
        self.ring = read()
        self._take()

    def _look_at_files(self) -> tuple[_Stamp | None, ...]:
        return tuple(_stamp(path) for path in self._files)

    def look(self, now_ns: int) -> None:
        """Once a second, if it is called more often."""
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + _LOOK_EVERY_NS
        stamps = self._look_at_files()
        if stamps != self._stamps:
            self._stamps = stamps
            self._reload()
        self._choose()

    def _reload(self) -> None:
        """Files that are wrong change nothing: the keys that are known stay in force."""
        try:
            self.ring = self._read()
        except ConfigError as e:
            _log.warning("the key files have changed, the keys stay as they are: %s", e)
            return
        _log.info("the key files have changed: %d key(s) are heard", len(self.ring.heard))
        self._take()

    def _take(self) -> None:
        self._seal.hears(*self.ring.heard)
        self._core.hears_keys(self.ring.names)
        if self._link is not None:
            self._link.take(self.ring)
        self._choose()

    def _choose(self) -> None:
        """Among the keys that are here."""
        spoken = self.ring.spoken(self._core.peer.hears_keys)
        name = name_of(spoken)
        if self._core.link.key == name:
            return
        if self._core.link.key:
            _log.info("the key %s is in force", name)
        self._speech.seal_with(spoken)
        self._core.agreed_on(replace(self._core.link, key=name))

    def status(self) -> dict[str, Any]:
        """Plain values. `changed`: no key is to follow, or both daemons speak it."""
        following, peer = self.ring.following, self._core.peer
        both = following is None or following == self._speech.pair_key == peer.pair_key
        return {
            "speaks": self._core.link.key,
            "hears": self.ring.names,
            "peer_hears": peer.hears_keys,
            "changed": both,
        }
