# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts whose configurations do not fit, or whose QEMU does not start: both say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS, Place
from tests.capabilities import require
from tests.lab import clean, cli

_LIMIT_S = 40.0


@contextmanager
def _lab(change: Callable[[Place], None]) -> Iterator[Lab]:
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotunlike"))
    try:
        lab.build(choose(Wanted()))
        change(lab.places["b"])
        for place in lab.places.values():
            lab.start_daemon(place)
        yield lab
    finally:
        lab.down()


def _edit(place: Place, old: str, new: str) -> None:
    text = place.config.read_text()
    assert text.count(old) == 1
    place.config.write_text(text.replace(old, new))


def _status(lab: Lab, host: str) -> dict[str, Any]:
    return dict(lab.ask(host) or {})


def _no_traceback(lab: Lab) -> None:
    for place in lab.places.values():
        assert "Traceback" not in place.log.read_text()
        assert "never retrieved" not in place.log.read_text()


def test_hosts_that_differ_say_so_and_copy_nothing() -> None:
    """As found: the copy was made, QEMU refused it, and the reason stood in its log alone."""
    with _lab(lambda place: _edit(place, "memory-mib = ", "memory-mib = 1")) as lab:

        def named() -> bool:
            return all("vm.memory-mib is" in _status(lab, h).get("sentence", "") for h in HOSTS)

        lab.wait(named, "the difference is not named", _LIMIT_S)
        assert _status(lab, "a")["state"] == "solo", "it serves"
        assert "copying" not in lab.places["a"].log.read_text()
        assert "vm.memory-mib" in cli(lab, "b", "status").stdout
        _no_traceback(lab)


def test_what_the_replicas_qemu_said_is_told_on_both_hosts() -> None:
    """And when its reason is gone the pair is made."""

    def file(lab: Lab, host: str) -> Path:
        return lab.places[host].directory / "of-the-guest"

    def add(place: Place) -> None:
        for one in (place, place.other):
            word = f"name=opt/test,file={one.directory / 'of-the-guest'}"
            _edit(one, "memory-mib", f'extra-args = ["-fw_cfg", "{word}"]\nmemory-mib')
        (place.other.directory / "of-the-guest").write_text("x")

    with _lab(add) as lab:

        def told() -> bool:
            said = (_status(lab, h).get("last_attempt", {}).get("qemu_said", "") for h in HOSTS)
            return all("of-the-guest" in one for one in said)

        lab.wait(told, "what QEMU said is not told", _LIMIT_S)
        assert "its last QEMU said" in _status(lab, "a")["sentence"]
        assert "of-the-guest" in cli(lab, "a", "status").stdout
        file(lab, "b").write_text("x")
        lab.wait_protected()
        attempts = [_status(lab, host)["last_attempt"] for host in HOSTS]
        assert attempts == [{"given_up": "", "qemu_said": ""}] * 2
        _no_traceback(lab)
