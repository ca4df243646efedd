# SPDX-License-Identifier: GPL-2.0-only
"""The verb `colo-ebpf bench`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from colo_ebpf.bench import results, suite
from colo_ebpf.bench.apps import loads, part_applications, told
from colo_ebpf.cli.termination import taken_down_first
from colo_ebpf.errors import BenchError

_WIDTHS = (44, 34, 14)


def add_verb(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Its line of the command line."""
    bench = verbs.add_parser(
        "bench", parents=[common], help="measure against no protection and against QEMU's COLO"
    )
    names = ", ".join((*suite.PARTS, *suite.LANES))
    bench.add_argument("names", nargs="*", metavar="PART|LANE", help=f"{names}; default: all")
    bench.add_argument("--quick", action="store_true", help="some minutes instead of an hour")
    bench.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help="for results")
    bench.add_argument(
        "--draw", action="store_true", help="measure nothing: draw the report of DIR/results.json"
    )
    bench.add_argument(
        "--lanes", default="", metavar="LANE,...", help="applications: only these, no report"
    )
    bench.add_argument(
        "--loads", default="", metavar="LOAD,...", help="applications: only these, no report"
    )
    bench.add_argument("--seconds", type=float, default=2.0, help="applications: of each reading")
    bench.add_argument("--rounds", type=int, default=1, help="applications: readings of each load")
    bench.set_defaults(verb=_bench)


def _bench(args: argparse.Namespace) -> int:
    from colo_ebpf.bench.report import html_page, tables

    if args.lanes or args.loads:
        return _try_out(args)
    saved = args.out / "results.json"
    found = results.load(saved) if args.draw else _measure(args, saved)
    tables.write(found, args.out)
    page = html_page.write(found, args.out)
    verdicts = html_page.verdicts(found)
    if args.json:
        print(msgspec.json.encode(found).decode())
        return 0
    for v in verdicts:
        cells = (v.measure, v.target, v.found)
        line = " ".join(c.ljust(w) for c, w in zip(cells, _WIDTHS, strict=True))
        print(f"{line} {v.outcome.value}")
    print(f"{saved}\n{page}")
    return 0


def _try_out(args: argparse.Namespace) -> int:
    """One line for each reading, at once; nothing is written."""
    if args.names != ["applications"]:
        raise BenchError("--lanes and --loads are for `bench applications`")
    _require_root()
    plan = part_applications.Plan(
        lanes=part_applications.chosen_lanes(args.lanes),
        loads=loads.chosen(args.loads),
        rounds=args.rounds,
        seconds=args.seconds,
    )

    def show(*reading: Any) -> None:
        print(json.dumps(told.plain(*reading)) if args.json else told.line(*reading), flush=True)

    with taken_down_first():
        rounds = part_applications.try_out(plan, show, results.Recorder().say)
    return 1 if any(found.broke for found in rounds.found.values()) else 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise BenchError("the benchmarks make namespaces and load programs: run them as root")


def _measure(args: argparse.Namespace, saved: Path) -> results.Results:
    _require_root()
    recorder = results.Recorder()
    with taken_down_first():
        suite.run(
            args.names,
            recorder,
            args.quick,
            done=lambda: results.save(recorder.results(args.quick), saved),
        )
    return recorder.results(args.quick)
