# SPDX-License-Identifier: GPL-2.0-only
"""The Grafana dashboard: its queries are asked of what a pair really tells, and none is empty."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.metrics.answers import Answer, Target
from colo_ebpf.metrics.families import families, sample_names
from tests import statuses
from tests.capabilities import ROOT
from tests.promtool import promtool

FILE = ROOT / "packaging" / "grafana" / "colo-ebpf.json"
_COLUMNS = 24
_BUILT_IN = {"__all", "__rate_interval"}


def _dashboard() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text()))


def _panels() -> list[dict[str, Any]]:
    return [panel for panel in _dashboard()["panels"] if panel["type"] != "row"]


def _queries() -> list[tuple[str, str, str]]:
    """Title, expression and legend of each."""
    found = [
        (panel["title"], one["expr"], one["legendFormat"])
        for panel in _panels()
        for one in panel["targets"]
    ]
    notes = _dashboard()["annotations"]["list"]
    return found + [(one["name"], one["expr"], one["titleFormat"]) for one in notes]


def _plain(expression: str) -> str:
    """As Grafana would send it, for all VMs and hosts."""
    for name, value in (("vm", ".*"), ("host", ".*"), ("__rate_interval", "1m")):
        expression = expression.replace(f"${name}", value)
    return expression


def _told() -> tuple[Answer, Answer]:
    """Of a pair to which a bit of everything happens."""
    primary, secondary = statuses.of_pair("a"), statuses.of_pair("b")
    primary["checkpoints"]["for_age"] = {"idle": 1}
    primary["checkpoints"]["patience"].update(late_p50_ms=1.0, late_p99_ms=2.0)
    primary["held"]["oldest_ms"] = 5.0
    primary["peer"].update(refused={"stale": 1}, plane_age_ms=5.0)
    primary["progress"] = {"what": "disk 0", "done": 1, "total": 2}
    secondary["overlays"] = [{"disk": 0, "used_bytes": 1, "limit_bytes": 2, "free_bytes": 3}]
    return (
        Answer(Target("web", "a", "/s"), primary, arbiter_error=""),
        Answer(Target("web", "b", "/s"), secondary, arbiter_error=""),
    )


def _series() -> list[dict[str, str]]:
    """What they tell, for ten minutes: what is counted grows, who serves changes."""
    found = []
    for family in families(_told()):
        rises = family.type in ("counter", "histogram")
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in one.labels.items())
            values = f"0+{one.value + 1}x40" if rises else f"{one.value}+0x40"
            if family.name == "colo_ebpf_serving":
                values = f"{one.value}+0x39 {1 - one.value}"
            found.append({"series": f"{one.name}{{{labels}}}", "values": values})
    return found


def test_it_is_for_any_data_source_and_whatever_vms_there_are() -> None:
    dashboard = _dashboard()
    kinds = {one["name"]: one["type"] for one in dashboard["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "vm": "query", "host": "query"}
    assert dashboard["uid"] == "colo-ebpf"
    assert "__inputs" not in dashboard, "to be provisioned as it is"
    variables = set(re.findall(r"\$\{?(\w+)", FILE.read_text()))
    assert variables <= set(kinds) | _BUILT_IN
    parts = [*_panels(), *(one for panel in _panels() for one in panel["targets"])]
    for part in [*parts, *dashboard["annotations"]["list"]]:
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_a_place_and_a_name_of_their_own() -> None:
    panels = _dashboard()["panels"]
    for what in ("id", "title"):
        assert len({panel[what] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert max(columns) < _COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["description"] for panel in _panels())


def test_every_metric_in_it_exists() -> None:
    text = FILE.read_text()
    labels = {"colo_ebpf_state"}  # of the state set of that name
    used = set(re.findall(r"\bcolo_ebpf_\w+", text))
    assert used <= sample_names() | labels
    assert len(used) > 20


@pytest.mark.parametrize(("title", "expression", "legend"), _queries())
def test_no_panel_is_empty_and_each_line_has_its_name(
    title: str, expression: str, legend: str, tmp_path: Path
) -> None:
    by = ", ".join(re.findall(r"{{(\w+)}}", legend))
    plain = _plain(expression)
    asked = [
        {"expr": f"count({plain}) > bool 0", "eval_time": "10m", "exp_samples": [_one(1)]},
        # As many lines as names: no label that tells them apart is missing from the legend.
        {
            "expr": f"count(count by ({by}) ({plain})) - count({plain})",
            "eval_time": "10m",
            "exp_samples": [_one(0)],
        },
    ]
    test = {"interval": "15s", "input_series": _series(), "promql_expr_test": asked}
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [], "tests": [test]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, f"{title}: {done.stdout}{done.stderr}"


def _one(value: float) -> dict[str, Any]:
    return {"labels": "{}", "value": value}
