# SPDX-License-Identifier: GPL-2.0-only
"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.capabilities import ROOT

DOCS = ROOT / "docs"


def pages() -> list[Path]:
    """Every page that people read; CHANGELOG is a list of what was."""
    first = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [*(page for page in first if page.exists()), *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """As pytest shows it."""
    return str(page.relative_to(ROOT))


def commands_of(page: Path) -> list[str]:
    """Each line of its `sh` blocks: what a reader types."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line outside of code blocks."""
    code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code:
            yield number, line


def anchors_of(page: Path) -> set[str]:
    """What a link to a heading of it may say."""
    heads = [line.lstrip("#").strip() for _, line in prose_of(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
