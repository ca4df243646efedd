# SPDX-License-Identifier: GPL-2.0-only
"""The daemons of a pair agree on the keys of its link, whatever happens to them and to the keys.

Where the kernel has no IPsec a toy stands in for `ip`: what is tried here is the daemons' part.
That the kernel seals and refuses is tried in `tests/link`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.datapath.net import namespaces, xfrm
from colo_ebpf.lab import faults
from colo_ebpf.lab.lab import Lab
from tests.lab import cli, protected, toy_ip

_POLICIES = 13


def _stand_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / "ip"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -ISE {toy_ip.__file__} "$@"\n')
    program.chmod(0o755)
    (directory / "kept").mkdir()
    monkeypatch.setenv("TOY_IP", str(directory / "kept"))
    monkeypatch.setenv("PATH", f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_XFRM).close()
    except OSError:
        pytest.skip("the kernel has no netlink of IPsec (CONFIG_XFRM_USER)")
    if xfrm.why_not():
        _stand_in(tmp_path, monkeypatch)
    with protected("colotseal") as one:
        yield one


def _link(lab: Lab, host: str) -> dict[str, Any]:
    return dict((lab.ask(host) or {}).get("link", {}))


def _fit(lab: Lab) -> bool:
    """What one seals with the other opens."""
    a, b = _link(lab, "a"), _link(lab, "b")
    if not (a.get("agreed") and b.get("agreed")):
        return False
    return bool(a["seals_with"] == b["opens"] and b["seals_with"] == a["opens"])


def _keys(lab: Lab) -> set[str]:
    return {_link(lab, host)[way] for host in "ab" for way in ("seals_with", "opens")}


def _other_keys(lab: Lab, before: set[str]) -> set[str]:
    """Once both have others."""
    lab.wait(lambda: _fit(lab) and not before & _keys(lab), "no new keys are agreed on", 60)
    return _keys(lab)


def _on(lab: Lab, host: str, *words: str) -> None:
    def run() -> None:
        subprocess.run(words, check=True, capture_output=True)

    namespaces.run_in(lab.places[host].namespace, run)


def _stays_protected(lab: Lab) -> None:
    lab.wait_protected()
    record = [(lab.ask(host) or {})["record"]["generation"] for host in "ab"]
    assert record[0] == record[1]


def test_the_keys_of_a_pair(lab: Lab) -> None:
    lab.wait(lambda: _fit(lab), "no keys are agreed on", 60)
    assert "sealed by IPsec, its key is" in cli(lab, "a", "status").stdout
    generation = (lab.ask("a") or {})["record"]["generation"]
    keys = _keys(lab)
    assert len(keys) == 2

    faults.kill(lab, "b", "daemon")  # the kernel keeps what it has
    lab.start_daemon(lab.places["b"])
    keys = _other_keys(lab, keys)
    _stays_protected(lab)

    assert cli(lab, "a", "key", "rotate").returncode == 0
    keys = _other_keys(lab, keys)

    _on(lab, "a", "ip", "xfrm", "state", "flush")
    keys = _other_keys(lab, keys)
    assert "somebody has removed the link's keys" in lab.places["a"].log.read_text()

    _on(lab, "a", "ip", "xfrm", "policy", "flush")
    _tell_of_a_policy(lab)
    put_back = f"{_POLICIES} IPsec policies of the link were removed: put back"
    lab.wait(lambda: put_back in lab.places["a"].log.read_text(), "policies are not put back", 60)
    _stays_protected(lab)
    assert (lab.ask("a") or {})["record"]["generation"] == generation


def _tell_of_a_policy(lab: Lab) -> None:
    """As the kernel does when one is removed: the toy's policies are none of the kernel's."""
    words = "xfrm policy {} src 192.0.2.1 dst 192.0.2.2 dir out"
    for verb in ("update", "delete"):
        _on(lab, "a", toy_ip.REAL, *words.format(verb).split())
