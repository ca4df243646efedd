# SPDX-License-Identifier: GPL-2.0-only
"""A protected pair with clients at work, for tests that break it again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from colo_ebpf.lab.lab import Lab, daemons_of
from colo_ebpf.lab.topology import HOSTS, Guest
from tests.lab import Prepare, as_it_is, cli, protected
from tests.matrix.clients import Clients
from tests.matrix.rows import Place

_GROWTH = 20  # entries that show that somebody serves
_LIMIT_S = 60.0


class Pair:
    """The lab and its clients."""

    def __init__(self, lab: Lab, *, fences: bool) -> None:
        """`fences`: who goes on alone turns the other host off."""
        self.lab, self.clients, self._fences = lab, Clients(lab), fences

    def status(self, host: str) -> dict[str, Any]:
        """Of a daemon; empty if it does not answer."""
        return dict(self.lab.ask(host) or {})

    def place(self) -> Place:
        """Who is what."""
        (primary,) = [h for h in HOSTS if self.status(h).get("role") == "primary"]
        return Place(self.lab, primary, "b" if primary == "a" else "a")

    def entries(self) -> int:
        """Answered so far."""
        self.clients.check_writer()
        return len(self.clients.ledger.entries)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Bounded; says what the daemons said."""
        self.lab.wait(condition, what, _LIMIT_S)

    def heal(self) -> None:
        """Until it is protected. A host that is turned off meanwhile is turned on again."""
        self.lab.heal()
        if not self._fences:
            self.lab.wait_protected()
            return

        def protected() -> bool:
            if not all(daemons_of(place) for place in self.lab.places.values()):
                self.lab.heal()
            return all(self.status(host).get("protected") for host in HOSTS)

        self.until(protected, "the pair is not protected")

    def until_growth(self) -> None:
        """Somebody answers."""
        wanted = self.entries() + _GROWTH
        self.until(lambda: self.entries() >= wanted, "the ledger stands still")

    def until_taken_over(self, host: str, since: float) -> None:
        """The VM of this host is the last that has spoken."""
        self.until(lambda: self.clients.serving(since)[-1:] == [host], f"{host} takes over")

    def verify(self) -> None:
        """The images are equal."""
        self.lab.wait_protected()
        done = cli(self.lab, self.place().primary, "verify", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def working(
    name: str, arbiter: str = "file", prepare: Prepare = as_it_is, guest: Guest | None = None
) -> Iterator[Pair]:
    """A lab of this name with its clients; at the end everything a client was told is there."""
    with protected(name, guest, arbiter, prepare) as lab:
        pair, wrong = Pair(lab, fences=guest is not None and guest.shared_disk), []
        try:
            pair.clients.begin()
            yield pair
        finally:
            wrong = pair.clients.end()
    assert wrong == []
