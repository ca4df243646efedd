# SPDX-License-Identifier: GPL-2.0-only
"""docs/reference/reasons.md knows every reason that is counted, and says what to do about each."""

from __future__ import annotations

from colo_ebpf.datapath.bpf.abi import Reason, Verdict
from tests import reasons


def _printed(names: list[str]) -> set[str]:
    return {name.lower().replace("_", "-") for name in names}


def test_the_document_has_every_reason_and_verdict() -> None:
    assert reasons.made() == reasons.DOCUMENT.read_text(), "run `python -m tests.reasons`"
    text = reasons.DOCUMENT.read_text()
    missing = [name for name in _printed([v.name for v in Verdict]) if f"| `{name}` |" not in text]
    assert missing == []


def test_each_reason_says_what_to_do() -> None:
    assert set(reasons.advice()) == _printed([one.name for one in Reason if one])
    assert [name for name, todo in reasons.advice().items() if not todo] == []
