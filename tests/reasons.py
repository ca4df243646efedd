# SPDX-License-Identifier: GPL-2.0-only
"""The tables of docs/reference/reasons.md.

Names and meanings are from `colo_abi.h`, advice is from the document.

`python -m tests.reasons` writes them. What an operator is to do stands in the document alone, and
is kept; a new reason gets an empty cell, which a test refuses.
"""

from __future__ import annotations

import re
from pathlib import Path

from colo_ebpf.datapath.bpf.loader import source_directory
from tests.states import between, with_part

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "reasons.md"
_LINE = r"^\tCOLO_{}_(\w+) = \d+,\s*/\* (.*) \*/$"
_NOT_COUNTED = {"NONE"}  # a row without a packet


def _commented(prefix: str) -> dict[str, str]:
    """Printed name and comment of each constant."""
    text = (source_directory() / "include" / "colo_abi.h").read_text()
    pattern = re.compile(_LINE.replace("{}", prefix), re.MULTILINE)
    return {
        name.lower().replace("_", "-"): comment
        for name, comment in pattern.findall(text)
        if name not in _NOT_COUNTED
    }


def advice() -> dict[str, str]:
    """What to do, by reason, as the document has it."""
    lines = between(DOCUMENT.read_text(), "reasons").splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0].strip("`"): row[2] for row in cells}


def reason_rows() -> list[str]:
    """The table of reasons in Markdown."""
    known = advice()
    lines = ["| reason | meaning | what to do |", "|---|---|---|"]
    for reason, meaning in sorted(_commented("R").items()):
        lines.append(f"| `{reason}` | {meaning} | {known.get(reason, '')} |")
    return lines


def verdict_rows() -> list[str]:
    """The table of verdicts in Markdown."""
    lines = ["| verdict | meaning |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {meaning} |" for name, meaning in _commented("V").items())]


def made() -> str:
    """The document as it should be."""
    text = with_part(DOCUMENT.read_text(), "verdicts", verdict_rows())
    return with_part(text, "reasons", reason_rows())


if __name__ == "__main__":
    DOCUMENT.write_text(made())
