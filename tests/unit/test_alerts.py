# SPDX-License-Identifier: GPL-2.0-only
"""Alert rules, run by promtool: each fires when it should, and alone; none for a pair that is well
or only nearly not."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision.actions import State
from colo_ebpf.metrics.families import sample_names
from tests.capabilities import ROOT
from tests.promtool import promtool

RULES = ROOT / "packaging" / "prometheus" / "colo-ebpf.rules.yml"
PREFIX = "colo_ebpf_"
MINUTES = 300
_STEPS = 4 * MINUTES  # a sample each 15 s

Series = dict[str, str]  # values by "name own-labels @host"; "" takes one away


def _always(value: float) -> str:
    return f"{value}+0x{_STEPS}"


def _rises(per_step: float) -> str:
    return f"0+{per_step}x{_STEPS}"


def _once(value: float, steps: int, then: float = 0) -> str:
    """For so many samples, the first ten minutes being well."""
    return f"{then}+0x39 {value}+0x{steps - 1} {then}+0x{_STEPS}"


def _state(state: str, host: str = "a") -> str:
    return f'state colo_ebpf_state="{state}" @{host}'


WELL: Series = {
    "serving @a": _always(1),
    "serving @b": _always(0),
    _state("primary"): _always(1),
    _state("secondary", "b"): _always(1),
    'packets_total reason="beacon" @a': _rises(100),
    'checkpoints_total cause="mismatch" @a': _rises(3),
    'checkpoints_total cause="output" @a': _rises(300),
    'checkpoints_total cause="store-full" @a': _always(0),
    'checkpoint_pause_seconds_bucket le="0.5" @a': _rises(303),
    'checkpoint_pause_seconds_bucket le="1.0" @a': _rises(303),
    'checkpoint_pause_seconds_bucket le="+Inf" @a': _rises(303),
    "held_frames @a": _always(700),
    "hold_slots @a": _always(1000),
    "held_oldest_seconds @a": _always(1.9),
    'overlay_used_bytes disk="0" @b': _always(500),
    'overlay_limit_bytes disk="0" @b': _always(1000),
    'overlay_free_bytes disk="0" @b': _always(3000),
    **{
        f"{what} @{host}": _always(1)
        for what in ("daemon_up", "protected", "arbiter_up")
        for host in "ab"
    },
    **{f"{what} @{host}": _always(0) for what in ("paused", "harmed") for host in "ab"},
    **{f"peer_frames_silence_seconds @{host}": _always(0.05) for host in "ab"},
    **{f'peer_long_silences_total path="link" @{host}': _always(0) for host in "ab"},
    "pairings_failed_total @a": _always(0),
    "up @a": _always(1),
    "up @b": _always(1),
}


@dataclass(frozen=True)
class _Case:
    """`bad`: it fires, with `labels`, at minute `at`. `good`: it never does."""

    alert: str
    bad: Series
    good: Series
    labels: dict[str, str]
    at: int = 15
    others: tuple[str, ...] = ()  # that fire with it


OFF = {"serving @a": _always(0), _state("primary"): _always(0), _state("off"): _always(1)}
VM = {"vm": "web"}
ON_A, ON_B = {"vm": "web", "host": "a"}, {"vm": "web", "host": "b"}
CASES = [
    _Case("ColoNobodyServes", {"serving @a": _always(0)}, OFF, VM),
    _Case(
        "ColoNobodyServes",
        {
            **{f"daemon_up @{host}": _once(0, 100, 1) for host in "ab"},
            "serving @a": f"1+0x39 _x{_STEPS}",
            "serving @b": f"0+0x39 _x{_STEPS}",
        },
        {"serving @a": _once(0, 2, 1)},  # a failover
        VM,
        11,
    ),
    _Case("ColoTwoServe", {"serving @b": _always(1)}, {"serving @b": _once(1, 2)}, VM),
    _Case(
        "ColoUnprotected",
        {"protected @b": _always(0)},
        {"protected @a": _once(0, 19, 1), "protected @b": _once(0, 19, 1)},
        VM,
    ),
    _Case(
        "ColoUnprotected",
        {"protected @a": _always(0), _state("primary"): _always(0), _state("solo"): _always(1)},
        {"protected @a": _once(0, 900, 1), "paused @a": _once(1, 900)},
        VM,
    ),
    _Case(
        "ColoWithheld", {_state("claimed", "b"): _always(1)}, {_state("lost"): _once(1, 2)}, ON_B
    ),
    _Case("ColoWithheld", {_state("stuck"): _always(1)}, {_state("unknown"): _always(1)}, ON_A),
    _Case(
        "ColoWithheld",
        {"held_oldest_seconds @a": _rises(15)},
        {"held_oldest_seconds @a": _once(9, 2)},
        ON_A,
    ),
    _Case(
        "ColoPlaneBlind",
        {"peer_frames_silence_seconds @b": _rises(15)},
        {
            "peer_frames_silence_seconds @a": _rises(15),  # alone: there is no peer to hear
            _state("primary"): _always(0),
            _state("solo"): _always(1),
        },
        ON_B,
    ),
    _Case("ColoPlaneHarmed", {"harmed @a": _always(1)}, {"harmed @a": _once(1, 4)}, ON_A),
    _Case("ColoPausedLong", {"paused @b": _always(1)}, {"paused @b": _once(1, 900)}, VM, 250),
    _Case(
        "ColoCheckpointStorm",
        {'checkpoints_total cause="mismatch" @a': _rises(31)},
        {'checkpoints_total cause="mismatch" @a': _rises(29)},
        ON_A,
        30,
    ),
    _Case(
        "ColoPauseLong",
        {'checkpoint_pause_seconds_bucket le="0.5" @a': _rises(290)},
        {'checkpoint_pause_seconds_bucket le="0.5" @a': _rises(302)},
        ON_A,
        30,
    ),
    _Case(
        "ColoHoldStoreFull",
        {"held_frames @a": _always(810)},
        {"held_frames @a": _once(1000, 4)},
        ON_A,
    ),
    _Case(
        "ColoHoldStoreFull",
        {'checkpoints_total cause="store-full" @a': _rises(1)},
        {'checkpoints_total cause="store-full" @a': _once(4, _STEPS)},
        ON_A,
    ),
    _Case(
        "ColoOverlayFull",
        {'overlay_used_bytes disk="0" @b': _always(810)},
        {'overlay_used_bytes disk="0" @b': _always(790)},
        {**ON_B, "disk": "0"},
    ),
    _Case(
        "ColoOverlayFull",
        {'overlay_free_bytes disk="0" @b': _always(190)},
        {'overlay_free_bytes disk="0" @b': _always(210)},
        {**ON_B, "disk": "0"},
    ),
    _Case(
        "ColoSilenceNearTimeout",
        {'peer_long_silences_total path="link" @b': _rises(1)},
        {'peer_long_silences_total path="link" @b': _once(3, _STEPS)},
        {**ON_B, "path": "link"},
    ),
    _Case(
        "ColoArbiterDown", {"arbiter_up @a": _always(0)}, {"arbiter_up @a": _once(0, 4, 1)}, ON_A
    ),
    _Case(
        "ColoPairingFails",
        {"pairings_failed_total @a": _rises(0.1)},
        {"pairings_failed_total @a": _once(2, _STEPS)},
        ON_A,
        40,
    ),
    _Case(
        "ColoDaemonDown",
        {"daemon_up @b": _always(0), "serving @b": ""},
        {"daemon_up @b": _once(0, 8, 1)},
        ON_B,
    ),
    _Case(
        "ColoMetricsDown",
        {"up @b": _always(0)},
        {"up @b": _once(0, 8, 1)},
        {"job": "colo-ebpf", "instance": "b:9949"},
    ),
]


def _input(series: Series) -> list[dict[str, str]]:
    found = []
    for what, values in (WELL | series).items():
        text, host = what.split(" @")
        name, _, own = text.partition(" ")
        place = f'job="colo-ebpf",instance="{host}:9949"'
        labels = f'vm="web",host="{host}"' + (f",{own}" if own else "")
        full = f"up{{{place}}}" if name == "up" else f"{PREFIX}{name}{{{labels}}}"
        if values:
            found.append({"series": full, "values": values})
    return found


def _tests(tmp_path: Path, series: Series, expected: list[str], minutes: list[int]) -> str:
    """What promtool says against it: at these minutes exactly these alerts fire."""
    firing = 'ALERTS{alertstate="firing"}'
    asked = [
        {
            "expr": firing,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": labels, "value": 1} for labels in expected],
        }
        for minute in minutes
    ]
    test = {"interval": "15s", "input_series": _input(series), "promql_expr_test": asked}
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [test]}))
    done = promtool("test", "rules", str(file))
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _sample(case: _Case) -> str:
    severity = _rule(case.alert)["severity"]
    labels = {"alertname": case.alert, "alertstate": "firing", "severity": severity, **case.labels}
    return "ALERTS{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _rules() -> dict[str, dict[str, str]]:
    """By name: expression, severity, what it says. The file is read as promtool prints it."""
    found: dict[str, dict[str, str]] = {}
    for block in RULES.read_text().split("- alert: ")[1:]:
        name, rest = block.split("\n", 1)
        severity = re.search(r"severity: (\w+)", rest)
        expression = re.search(r"expr: (.*?)\n        (?:for|labels):", rest, re.DOTALL)
        assert severity and expression
        found[name] = {"severity": severity[1], "expr": expression[1], "text": rest}
    return found


def _rule(name: str) -> dict[str, str]:
    return _rules()[name]


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", str(RULES))
    assert (done.returncode, f"{len(_rules())} rules found" in done.stdout) == (0, True)


def test_a_pair_that_is_well_gives_no_alert(tmp_path: Path) -> None:
    assert _tests(tmp_path, {}, [], [1, 15, 60, 290]) == ""


def _ids(case: _Case) -> str:
    return f"{case.alert}-{next(iter(case.bad)).split()[0]}"


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_it_fires_and_no_other_does(case: _Case, tmp_path: Path) -> None:
    assert _tests(tmp_path, case.bad, [_sample(case)], [case.at]) == ""


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_what_is_nearly_so_fires_nothing(case: _Case, tmp_path: Path) -> None:
    minutes = [5, *range(10, 20), 30, 60, 240, 260]
    assert _tests(tmp_path, case.good, [], minutes) == ""


def test_every_rule_is_tried() -> None:
    assert {case.alert for case in CASES} == set(_rules())


def test_every_name_in_a_rule_exists() -> None:
    known = sample_names() | {"colo_ebpf_state"}
    states, causes = {one.value for one in State}, {one.value for one in Cause}
    for name, rule in _rules().items():
        used = set(re.findall(r"\bcolo_ebpf_\w+", rule["expr"]))
        assert used <= known, name
        assert used or 'up{job="colo-ebpf"}' in rule["expr"], name
        for label, values in (("colo_ebpf_state", states), ("cause", causes)):
            for said in re.findall(rf'\b{label}[=!]~?"([^"]+)"', rule["expr"]):
                assert set(said.split("|")) <= values, name


def test_the_docs_say_what_to_do_about_each() -> None:
    page = (ROOT / "docs" / "operate" / "monitoring.md").read_text()
    described = dict(re.findall(r"^\| `(Colo\w+)` \| (\w+) \|", page, re.MULTILINE))
    assert described == {name: rule["severity"] for name, rule in _rules().items()}
