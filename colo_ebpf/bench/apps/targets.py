# SPDX-License-Identifier: GPL-2.0-only
"""What the product promises to users of real servers. Pure."""

from __future__ import annotations

import math

from colo_ebpf.bench.apps import names
from colo_ebpf.bench.apps.loads import LOADS, Load
from colo_ebpf.bench.report.target import Find, Target
from colo_ebpf.bench.results import Results, Row

_SAME_OF_TWINS, _OTHER_OF_TWINS, _OF_STOCK = 0.85, 0.6, 2.0
_PAUSE_OF_STOCK, _PAUSE_MIB = 0.6, 20
_OTHER = ("incr-50", "tpcb-8", "https-each-1", "https-each-20")
_OF_FIXED = 0.9


def broke(row: Row) -> bool:
    """The load ended badly in this lane: whatever was read before does not count."""
    return row.note.startswith(names.BROKE)


def of_twins(load: Load) -> Find:
    """Ours over one of two VMs without a pair; 0 if ours broke."""
    return lambda results: _over(results, load, names.TWINS)


def of_lockstep(load: Load) -> Find:
    """Ours over two VMs of which a client waits for both; 0 if ours broke."""

    def find(results: Results) -> float | None:
        limit = results.row(names.PART, load.name, names.LOCKSTEP)
        if limit is None or broke(limit) or not limit.values:
            return None
        return _over(results, load, names.LOCKSTEP)

    return find


def of_fixed(load: Load) -> Find:
    """Ours over the better of both ways to take checkpoints, fixed; 0 if ours broke."""

    def find(results: Results) -> float | None:
        shares = [_over(results, load, lane) for lane in names.FIXED]
        return min((share for share in shares if share is not None), default=None)

    return find


def of_limit(load: Load) -> Find:
    """Of twins or of lockstep, what is more: either is about all that a pair can have."""

    def find(results: Results) -> float | None:
        shares = (of_twins(load)(results), of_lockstep(load)(results))
        return max((share for share in shares if share is not None), default=None)

    return find


def of_stock(load: Load) -> Find:
    """Ours over the better of QEMU's two settings; infinite if neither lasted."""

    def find(results: Results) -> float | None:
        better = better_stock(results, load)
        if better is not None:
            return _over(results, load, better)
        ours = results.row(names.PART, load.name, names.OURS)
        tried = [results.row(names.PART, load.name, lane) for lane in names.STOCKS]
        if ours is None or not any(tried):
            return None
        return 0.0 if broke(ours) else math.inf

    return find


def better_stock(results: Results, load: Load) -> str | None:
    """The setting with more; None if neither lasted or was measured."""
    rows = [results.row(names.PART, load.name, lane) for lane in names.STOCKS]
    whole = [row for row in rows if row is not None and row.values and not broke(row)]
    return max(whole, key=lambda row: row.median).lane if whole else None


def _over(results: Results, load: Load, peer: str) -> float | None:
    ours = results.row(names.PART, load.name, names.OURS)
    if ours is not None and broke(ours):
        return 0.0
    return results.ratio(names.PART, load.name, names.OURS, peer)


def needless(results: Results) -> float | None:
    """The most a minute, of all loads in which the two VMs need not differ."""
    names_ = {names.NEEDLESS.format(load.name) for load in LOADS if load.same}
    rows = [row for row in results.rows if row.part == names.PART and row.measure in names_]
    return max((sum(row.values) / len(row.values) for row in rows if row.values), default=None)


def _pause(results: Results) -> float | None:
    measure = names.PAUSE.format(_PAUSE_MIB)
    ours, stock = (results.row(names.PART, measure, lane) for lane in (names.OURS, names.STOCK))
    return ours.median / stock.median if ours and stock else None


def _rates(load: Load, bound: float) -> tuple[Target, Target]:
    twins, stock, limit = of_twins(load), of_stock(load), of_limit(load)
    share = of_fixed(load) if load.differs else of_lockstep(load)
    return (
        Target(load.name, f">= {bound:.2f} of twins", twins, bound, share=share),
        Target(load.name, f">= {_OF_STOCK:.0f}x stock", stock, _OF_STOCK, share=limit),
    )


APPLICATIONS: tuple[Target, ...] = (
    *(target for load in LOADS if load.same for target in _rates(load, _SAME_OF_TWINS)),
    *(target for load in LOADS if load.key in _OTHER for target in _rates(load, _OTHER_OF_TWINS)),
    *(
        Target(load.name, f">= {_OF_FIXED} of the better fixed way", of_fixed(load), _OF_FIXED)
        for load in LOADS
        if load.differs
    ),
    Target(
        "checkpoints beyond the date's, all loads that need none",
        "none",
        needless,
        0,
        at_most=True,
        unit="/min",
    ),
    Target(
        names.PAUSE.format(_PAUSE_MIB),
        f"<= {_PAUSE_OF_STOCK} of stock",
        _pause,
        _PAUSE_OF_STOCK,
        at_most=True,
    ),
)
