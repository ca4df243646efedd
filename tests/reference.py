# SPDX-License-Identifier: GPL-2.0-only
"""The tables of docs/reference/configuration.md and commands.md, from the schema and the parser.

`python -m tests.reference` writes them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from colo_ebpf.cli import manual
from colo_ebpf.cli.parser import parser
from tests.pages import DOCS
from tests.states import with_part

CONFIGURATION = DOCS / "reference" / "configuration.md"
COMMANDS = DOCS / "reference" / "commands.md"
_COMMON = {"--help", "--json", "--yes", "--config", "vm"}  # the page says them once


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def configuration_lines() -> list[str]:
    """A heading and a table for each table of the file."""
    lines: list[str] = []
    for table in manual.tables():
        lines += ["", f"## {table.title}", "", table.summary, ""]
        lines += ["| key | may be | default | effect |", "|---|---|---|---|"]
        for key in table.keys:
            default = f"`{key.default}`" if key.default else "to be given"
            lines.append(f"| `{key.name}` | {_kind(key.kind)} | {default} | {_cell(key.effect)} |")
    return [*lines, ""]


def _kind(kind: str) -> str:
    head, matches, pattern = kind.partition(" that matches ")
    if matches:
        return f"{head} that matches `{_cell(pattern)}`"
    return kind


def _subcommands(of: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {one.dest: one.help or "" for one in action._choices_actions}
            for name, inner in action.choices.items():
                yield name, said[name], inner


def _leaves(
    of: argparse.ArgumentParser, path: str = "colo-ebpf"
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for name, said, inner in _subcommands(of):
        below = list(_leaves(inner, f"{path} {name}"))
        yield from below or [(f"{path} {name}", said, inner)]


def _option(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    words = (action.metavar,) if isinstance(action.metavar, str) else action.metavar
    value = "|".join(action.choices or ()) or " ".join(words or (action.dest,)).upper()
    return _cell(f"{names} {value}".strip())


def _says(action: argparse.Action) -> str:
    said = (action.help or "").replace("%(default)s", str(action.default))
    if isinstance(action.default, float):
        said = said.replace("%(default)g", f"{action.default:g}")
    if isinstance(action.const, float):
        said = said.replace("%(const)g", f"{action.const:g}")
    return _cell(said)


def _own(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        one
        for one in command._actions
        if not {*one.option_strings, one.dest if not one.option_strings else ""} & _COMMON
    ]


def commands_lines() -> list[str]:
    """Each command, and its own arguments."""
    leaves = list(_leaves(parser()))
    lines = ["| command | |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(said)} |" for name, said, _ in leaves]
    lines += ["", "| argument | of | |", "|---|---|---|"]
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, _, command in leaves:
        for one in _own(command):
            rows[_option(one), _says(one)].append(f"`{name.removeprefix('colo-ebpf ')}`")
    lines += [f"| `{option}` | {', '.join(of)} | {says} |" for (option, says), of in rows.items()]
    return lines


def made() -> dict[Path, str]:
    """Both pages as they should be."""
    return {
        CONFIGURATION: with_part(CONFIGURATION.read_text(), "keys", configuration_lines()),
        COMMANDS: with_part(COMMANDS.read_text(), "commands", commands_lines()),
    }


if __name__ == "__main__":
    for page, text in made().items():
        page.write_text(text)
