# SPDX-License-Identifier: GPL-2.0-only
"""What has to be equal on both hosts before a VM can be copied from one to the other.

Each host says it of itself in its heartbeats while it has no pair, value by value under the name it
has in the configuration. Only what both know is compared. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

UNKNOWN = "unknown"
_MOST_NAMED = 3


def difference(mine: Mapping[str, str], theirs: Mapping[str, str], here: str, peer: str) -> str:
    """What is not equal ("" if nothing is, or one side has said nothing)."""
    if not mine or not theirs:
        return ""
    names = [name for name in (*mine, *(set(theirs) - set(mine))) if _differs(mine, theirs, name)]
    told = [
        f"{name} is {_value(mine, name)} on {here} and {_value(theirs, name)} on {peer}"
        for name in names[:_MOST_NAMED]
    ]
    more = len(names) - len(told)
    return ", ".join(told) + (f", and {more} more" if more else "")


def _differs(mine: Mapping[str, str], theirs: Mapping[str, str], name: str) -> bool:
    one, other = mine.get(name), theirs.get(name)
    return one != other and UNKNOWN not in (one, other)


def _value(values: Mapping[str, str], name: str) -> str:
    return values.get(name) or "none"
