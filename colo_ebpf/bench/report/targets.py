# SPDX-License-Identifier: GPL-2.0-only
"""What the product promises, and whether a run shows it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from colo_ebpf.bench import names
from colo_ebpf.bench.apps.targets import APPLICATIONS
from colo_ebpf.bench.kernel import names as kernel
from colo_ebpf.bench.report.target import Find, Target
from colo_ebpf.bench.results import Results


def _lanes(measure: str, peer: str) -> Find:
    """Ours over the peer's, pair by pair."""
    return lambda results: results.ratio(names.LANES, measure, names.OURS, peer)


def _of_peer(measure: str, target: str, peer: str, bound: float) -> Target:
    """Ours over the peer's, and how much of the limit that is, where it was measured."""
    share = _lanes(measure, names.LIMIT)
    return Target(measure, target, _lanes(measure, peer), bound, share=share)


def _alone(payload_bytes: int, order: str, peer: str = kernel.QEMU) -> Find:
    """Ours over the peer's; the limit is measured in the order that costs more."""
    measure = kernel.compare(payload_bytes, order)
    return lambda results: results.ratio("alone", measure, kernel.OURS, peer)


def _median(part: str, measure: str, lane: str) -> Find:
    def find(results: Results) -> float | None:
        row = results.row(part, measure, lane)
        return row.median if row else None

    return find


def _largest(
    part: str,
    start: str,
    lanes: Sequence[str] = (),
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> Find:
    """Of the medians (or `of`) of all rows whose measure begins so (in these lanes)."""

    def find(results: Results) -> float | None:
        rows = [r for r in results.rows if r.part == part and r.measure.startswith(start)]
        found = [of(row.values) for row in rows if row.values and (not lanes or row.lane in lanes)]
        return max(found, default=None)

    return find


def _cold_share(results: Results) -> float | None:
    """What a frame would cost if nothing had grown but what its two look-ups cost that read what
    it needs of the entry, over what it costs: the least."""
    lines = {c.line: c.points for c in results.curves if c.plot == kernel.FLOWS}
    look = lines.get(kernel.LOOK_LINES)
    if look is None:
        return None
    grown_ns = look[-1][1] - look[0][1]
    costs = [lines[line] for line in map(kernel.both, kernel.PAYLOADS) if line in lines]
    return min(((cost[0][1] + grown_ns) / cost[-1][1] for cost in costs), default=None)


def _control(measure: str, lane: str, peer: str) -> Find:
    """Ratio of medians: the readings of the two are as many as there were checkpoints."""

    def find(results: Results) -> float | None:
        one, other = (results.row("control", measure, name) for name in (lane, peer))
        return one.median / other.median if one and other else None

    return find


def _connected(results: Results) -> float | None:
    return _median(names.LANES, names.OFFSETS, names.OURS)(results)


_CPU = names.BEYOND.format(names.CPU_PER_GB)
_REQUESTS = names.REQUESTS.format("")
_AWAKE_P50 = names.P50.format(names.REQUEST_AWAKE)
_IDLE = ("primary", "secondary")
TARGETS: tuple[Target, ...] = (
    *APPLICATIONS,
    *(
        Target(
            f"compare alone, {payload} B, {order}",
            ">= 10x colo-compare",
            _alone(payload, order),
            10,
            share=_alone(payload, order, kernel.LEAST),
        )
        for payload in kernel.PAYLOADS
        for order in kernel.ORDERS
    ),
    _of_peer(names.BULK_DOWNLOAD, ">= 10x qemu", names.QEMU, 10),
    _of_peer(names.BULK_DOWNLOAD, ">= 25 % of plain", names.PLAIN, 0.25),
    _of_peer(names.BULK_UPLOAD, ">= 25 % of plain", names.PLAIN, 0.25),
    _of_peer(names.REQUEST_1B, ">= 3x qemu", names.QEMU, 3),
    Target(
        _AWAKE_P50,
        "<= 2x plain",
        _lanes(_AWAKE_P50, names.PLAIN),
        2,
        at_most=True,
        share=lambda results: results.ratio(names.LANES, _AWAKE_P50, names.LIMIT, names.OURS),
    ),
    _of_peer(names.CONNECTIONS, ">= 3x qemu", names.QEMU, 3),
    _of_peer(names.CONNECTIONS, ">= half of plain", names.PLAIN, 0.5),
    _of_peer(names.UDP_8, ">= 5x qemu", names.QEMU, 5),
    _of_peer(names.UDP_8, ">= 40 % of plain", names.PLAIN, 0.4),
    Target(
        "false checkpoints, all loads",
        "none",
        _largest(names.LANES, _REQUESTS, (names.OURS,), of=max),
        0,
        at_most=True,
        unit="",
    ),
    Target(
        "CPU per GB downloaded, beyond two servers",
        "<= 1/10 of qemu",
        _lanes(_CPU, names.QEMU),
        0.1,
        at_most=True,
    ),
    Target("timestamps on, offsets different", "connections", _connected, 1, unit="connections"),
    Target(
        "checkpoint pause, idle guest",
        "<= 1/5 of stock settings",
        _control("checkpoint pause, idle guest", "ours", "qemu"),
        0.2,
        at_most=True,
    ),
    Target(
        "stall on silent divergence",
        "<= 100 ms",
        _median("control", "stall when the SVM is silent", "ours"),
        100,
        at_most=True,
        unit="ms",
    ),
    Target(
        "mismatch to checkpoint request, p99",
        "<= 2 ms",
        _median("control", "mismatch to checkpoint request, p99", "ours"),
        2,
        at_most=True,
        unit="ms",
    ),
    Target(
        "client outage, QEMU killed",
        "<= 60 ms",
        _median("control", "client outage", "QEMU killed"),
        60,
        at_most=True,
        unit="ms",
    ),
    Target(
        "client outage, host killed",
        "<= 250 ms",
        _median("control", "client outage", "host killed"),
        250,
        at_most=True,
        unit="ms",
    ),
    Target(
        "flows 1 to 1,000,000",
        "within 20 %",
        _largest("growth", kernel.growth(kernel.FLOWS, "both VMs")),
        1.2,
        at_most=True,
        share=_cold_share,
    ),
    Target(
        "idle daemon, processor",
        "< 1 % of a core",
        _largest("control", "idle daemon, processor", _IDLE),
        1,
        at_most=True,
        unit="%",
    ),
    Target(
        "idle daemon, memory (PSS)",
        "< 80 MB",
        _largest("control", "idle daemon, PSS", _IDLE),
        80,
        at_most=True,
        unit="MB",
    ),
)
