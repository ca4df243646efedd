# SPDX-License-Identifier: GPL-2.0-only
"""The manual page of the configuration file has each of its keys, and what troff takes."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from colo_ebpf.cli import manual
from colo_ebpf.cli.effects import EFFECTS
from colo_ebpf.config.reading import KEYS

PAGE = manual.page().replace("\\-", "-")


@pytest.mark.parametrize("table", [name for name in KEYS if name])
def test_every_key_is_there(table: str) -> None:
    title = rf"^\.SH TABLE \[+{re.escape(table)}\]+$"
    section = re.split(r"^\.SH ", re.split(title, PAGE, flags=re.MULTILINE)[1], flags=re.MULTILINE)
    inner = {name.rpartition(".")[2] for name in KEYS if name.startswith(f"{table}.")}
    keys = set(re.findall(r"^\.TP\n\.B (\S+)$", section[0], re.MULTILINE))
    assert keys == set(KEYS[table]) - inner


def test_what_may_be_given_is_told() -> None:
    assert '"auto" or "kvm" or "tcg"; default "auto"' in PAGE
    assert "integer, 576 to 9000; default 1500" in PAGE
    assert "512 or 4096; default 512" in PAGE
    assert "true or false; default false" in PAGE
    assert re.search(r"\.B mac\nstring that matches .*; has to be given", PAGE)


def test_each_key_says_what_it_does() -> None:
    leaves = {
        name: {key for key in keys if f"{name}.{key}" not in KEYS}
        for name, keys in KEYS.items()
        if name
    }
    assert {name: set(keys) for name, keys in EFFECTS.items()} == leaves
    assert all(text.endswith(".") for keys in EFFECTS.values() for text in keys.values())


def test_troff_has_nothing_to_say_about_it() -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff: it is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z"],
        input=manual.page(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
