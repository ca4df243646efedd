# SPDX-License-Identifier: GPL-2.0-only
"""README and docs: commands parse, links and names lead somewhere, lines fit on a screen."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from colo_ebpf.cli.parser import parser
from colo_ebpf.datapath.bpf import abi
from tests.capabilities import ROOT
from tests.pages import DOCS, anchors_of, commands_of, name_of, pages, prose_of

each_page = pytest.mark.parametrize("page", pages(), ids=name_of)


@functools.cache
def _targets() -> str:
    return subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@each_page
def test_every_command_exists(page: Path) -> None:
    for command in commands_of(page):
        words = shlex.split(command)
        if words[0] == "colo-ebpf":
            parser().parse_args(words[1:])
        else:
            assert words[0] == "make", command
            assert re.search(rf"^  {words[1]} ", _targets(), re.MULTILINE), command


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if re.match(r"https?:", path):
            continue
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), path
        assert not anchor or anchor in anchors_of(to), f"{path}#{anchor}"


@each_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    tops = "bench|bpf|colo_ebpf|docs|tests|guest|packaging|scripts"
    named = re.findall(rf"`((?:{tops})/[\w./@-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@functools.cache
def _sources() -> str:
    tops = ("bpf", "colo_ebpf", "guest", "tests", "scripts", "packaging")
    files = (one for top in tops for one in (ROOT / top).rglob("*.*"))
    return "\n".join(f"/{one.relative_to(ROOT)}" for one in files) + "\n"


@each_page
def test_every_source_that_is_named_by_the_end_of_its_path_is_there(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|c|h|sh))`", page.read_text())
    assert [name for name in named if f"/{name}\n" not in _sources()] == []


@each_page
def test_the_maps_are_where_they_are_said_to_be(page: Path) -> None:
    assert set(re.findall(r"colo_ebpf/v(\d+)", page.read_text())) <= {str(abi.ABI_VERSION)}


def _linked(page: Path) -> set[Path]:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    return {(page.parent / link).resolve() for link in links}


def test_the_index_leads_to_every_page() -> None:
    """By itself, or by the index of a folder."""
    index = _linked(DOCS / "README.md")
    folders = {page for page in index if page.name == "README.md"}
    found = index.union(*(_linked(page) for page in folders))
    assert set(DOCS.rglob("*.md")) - found == {DOCS / "README.md"}


@each_page
def test_lines_fit_on_a_screen(page: Path) -> None:
    """Rows of tables and what is in code blocks are exempt: they cannot be broken."""
    wide = [row for _, row in prose_of(page) if len(row) > 100]
    assert [row for row in wide if not row.startswith("|")] == []


@each_page
def test_no_name_is_stale(page: Path) -> None:
    """Maps of versions that are gone, and a run directory that no VM has."""
    stale = r"\bv[1-9]/|colo_ebpf/v[1-9]\b|/run/colo-ebpf/qemu\.pid"
    assert re.findall(stale, page.read_text()) == []


def _strings() -> str:
    """Every string of the code, as it is written; a value that is put in is a dot."""
    files = (ROOT / "colo_ebpf").rglob("*.py")
    return "\n".join(one for file in files for one in _strings_of(file, "."))


def _strings_of(file: Path, value: str) -> list[str]:
    """With `value` for each value that is put in. Without what is said about the code."""
    found, others = [], set[ast.AST]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            others.update(node.values)
            parts = [v.value if isinstance(v, ast.Constant) else value for v in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Expr):
            others.add(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in others:
            found.append(node.value)
    return found


def test_what_status_says_at_night_is_what_the_code_says() -> None:
    """Each phrase of the first columns; `...`, PEER and the like stand for anything."""
    page, said = (DOCS / "operate" / "at-night.md").read_text(), _strings()
    phrases = [
        part.strip(" :")
        for cell in re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
        for phrase in re.findall(r"`([^`]+)`", cell)
        for part in re.split(r"\.\.\.|\b(?:PEER|HERE|N|M)\b|[(),:]", phrase)
    ]
    assert len(phrases) > 50
    assert [one for one in phrases if one not in said] == []


def test_every_sentence_has_its_row_at_night() -> None:
    """What `decide` says, and why a pair is not protected."""
    page = (DOCS / "operate" / "at-night.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    rows = [row for cell in cells for row in re.findall(r"`([^`]+)`", cell)]
    states = (DOCS / "reference" / "states.md").read_text()
    table = states.partition("<!-- sentences: begin -->")[2].partition("<!-- sentences: end -->")[0]
    sentences = re.findall(r"^\| `\w+` \| (.*?) \|", table, re.MULTILINE)
    assert len(sentences) > 100
    gaps = _strings_of(ROOT / "colo_ebpf" / "control" / "decision" / "protection.py", "PEER")
    gaps = [one for one in gaps if " " in one]
    assert len(gaps) > 8
    patterns = [".*".join(map(re.escape, row.split("..."))) for row in rows]
    without = [one for one in (*sentences, *gaps) if not any(re.search(p, one) for p in patterns)]
    assert without == []


def test_each_way_is_eight_files_at_most() -> None:
    ways = (DOCS / "understand" / "ways.md").read_text()
    said = dict(re.findall(r"^\| \[[^]]+\]\(#([^)]+)\) \| (\d) \|$", ways, re.MULTILINE))
    for part in ways.split("\n## ")[1:]:
        anchor = re.sub(r"[^\w\- ]", "", part.partition("\n")[0].lower()).replace(" ", "-")
        files = re.findall(r"^\| \d\. `([^`]+)` \|", part, re.MULTILINE)
        assert all((ROOT / file).is_file() for file in files)
        assert len(files) == int(said.pop(anchor)) <= 8
    assert said == {}


def test_what_a_way_names_is_in_the_file_of_its_row() -> None:
    ways = (DOCS / "understand" / "ways.md").read_text()
    rows = re.findall(r"^\| \d\. `([^`]+)` \| (.*) \|$", ways, re.MULTILINE)
    assert len(rows) > 30
    for file, text in rows:
        names = re.findall(r"`([A-Za-z_]+)(?:\(\w*\))?`", text)
        code = (ROOT / file).read_text()
        assert [name for name in names if not re.search(rf"\b{name}\b", code)] == [], file


@each_page
def test_no_sentence_is_long(page: Path) -> None:
    """One thought per sentence: nobody reads fifty words once. Tables are lists, and exempt."""
    lines = [row for _, row in prose_of(page) if not row.startswith(("|", "#", "<!--"))]
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*] |\d+\. )", "\n".join(lines)):
        for sentence in re.split(
            r"(?<=[.!?:;)*])\s+(?=[A-Z0-9`*\[(])", " ".join(paragraph.split())
        ):
            assert len(sentence.split()) <= 45, sentence
