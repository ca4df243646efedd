# SPDX-License-Identifier: GPL-2.0-only
"""Metrics, pages and events of a pair that loses a host and gets it back."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families as parsed

from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from colo_ebpf.metrics.families import families, sample_names
from tests.lab import protected
from tests.promtool import promtool

_COMMAND = """#!/bin/sh
printf '%s\\t%s\\t%s\\t%s\\n' "$COLO_OLD" "$COLO_NEW" "$COLO_GENERATION" "$COLO_WHY" >> "$0.told"
"""


def _told_of(_: Lab, place: Place) -> None:
    command = place.directory / "notify"
    command.write_text(_COMMAND)
    command.chmod(0o700)
    with place.config.open("a") as file:
        file.write(f'[notify]\ncommand = ["{command}"]\n')


def _events(place: Place) -> list[tuple[str, str, str, str]]:
    """Old state, new one, generation, why."""
    path = place.directory / "notify.told"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.split("\t", 3)) for line in lines]  # type: ignore[misc]


class _Monitor:
    """`colo-ebpf metrics` of one host."""

    def __init__(self, place: Place) -> None:
        words = [sys.executable, "-m", "colo_ebpf.cli.main", "metrics", str(place.config)]
        self.process = subprocess.Popen(
            [*words, "--listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        match = re.match(r"http://(\S+)/metrics has", self.process.stderr.readline())
        assert match
        self._address = match[1]

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def value(self, name: str) -> float | None:
        """Of the metric without labels of its own."""
        for family in parsed(self.get("/metrics")[1]):
            for one in family.samples:
                if one.name == f"colo_ebpf_{name}":
                    return float(one.value)
        return None

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode


@contextmanager
def _monitors(lab: Lab) -> Iterator[dict[str, _Monitor]]:
    found: dict[str, _Monitor] = {}
    try:
        for host, place in lab.places.items():
            found[host] = _Monitor(place)
        yield found
    finally:
        codes = [one.end() for one in found.values()]
    assert codes == [0, 0]


def test_a_host_dies_and_comes_back_and_everybody_is_told() -> None:
    with protected("colotestmo", prepare=_told_of) as lab, _monitors(lab) as of:
        name = lab.name
        for host, page, code in (
            *(("a", "protected", 200), ("b", "protected", 200)),
            *(("a", "serving", 200), ("b", "serving", 503)),
        ):
            assert of[host].get(f"/{page}/{name}")[0] == code, (host, page)
        _every_metric_is_there(of)
        lab.wait(lambda: of["a"].value("arbiter_up") == 1, "the arbiter is not read", 30)

        faults.kill(lab, "a", "host")
        b = lab.places["b"]
        lab.wait(lambda: of["b"].get(f"/serving/{name}")[0] == 200, "b does not serve", 60)
        assert of["b"].get(f"/protected/{name}")[0] == 503
        code, why = of["a"].get(f"/serving/{name}")
        assert (code, why.startswith("not known: no daemon answers on")) == (503, True)
        assert (of["a"].value("daemon_up"), of["a"].value("serving")) == (0, None)
        lab.wait(lambda: "solo" in [new for _, new, _, _ in _events(b)], "b tells nobody", 30)
        states = [(old, new) for old, new, _, _ in _events(b)]
        assert states[-2:] == [("secondary", "claimed"), ("claimed", "solo")]
        assert [old for old, _ in states[1:]] == [new for _, new in states[:-1]]
        generation = {new: int(number) for _, new, number, _ in _events(b)}
        assert generation["solo"] == generation["claimed"] + 1 == generation["secondary"] + 2

        lab.heal()
        lab.wait_protected()
        lab.wait(lambda: of["a"].get(f"/protected/{name}")[0] == 200, "a does not say so", 30)
        assert of["b"].value("serving") == 1
        assert (of["b"].value("checkpoint_pause_seconds_count") or 0) >= 1
        lab.wait(lambda: _events(lab.places["a"])[-1][1] == "secondary", "a tells nobody", 30)
        for place in lab.places.values():
            assert "notify.command" not in place.log.read_text()
            assert len(processes.pids_of(place.namespace, "daemon")) == 1, "its helper is none"


def _every_metric_is_there(of: dict[str, _Monitor]) -> None:
    """What a real daemon says is what the metrics are made of."""
    said = [of[host].get("/metrics")[1] for host in "ab"]
    names = {one.name for text in said for family in parsed(text) for one in family.samples}
    assert names <= sample_names()
    # Only of what is not the case: an answer that waits, a copy under way, refused heartbeats.
    missing = {family.name for family in families(())} - {re.sub("_total$", "", n) for n in names}
    seldom = {"held_oldest_seconds", "answer_late_seconds", "copied_bytes", "to_copy_bytes"}
    seldom |= {"peer_refused", "checkpoints_for_age", "checkpoint_age_seconds"}
    spans = {"checkpoint_pause_seconds", "checkpoint_reaction_seconds"}  # by their buckets
    assert missing <= {f"colo_ebpf_{name}" for name in seldom | spans}
    for text in said:
        done = promtool("check", "metrics", text=text)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
