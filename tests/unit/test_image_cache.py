# SPDX-License-Identifier: GPL-2.0-only
"""What was compiled: found again if nothing changed, refused if others could have written it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import compiler, image, image_cache, loader, pinned_programs
from colo_ebpf.datapath.bpf.image import Image, MapDefinition, Program, Source
from colo_ebpf.datapath.bpf.image_cache import Kept
from colo_ebpf.errors import LoadError
from tests.capabilities import require

SOURCE = Source("a.c", "int a;", ("-DA=1",), ("a",))
_EXIT = bytes.fromhex("9500000000000000")
_LOAD_MAP = bytes.fromhex("1811000007000000 0000000000000000")
IMAGE = Image(
    source="a.c",
    license="GPL",
    types=b"types",
    maps=(MapDefinition("colo_a", 2, 4, 8, 1, 0, 0, 0, True),),
    programs=(Program("a", bytes(16) + _EXIT, ((0, 0),), (bytes(8), 8), (b"", 16)),),
)


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "version", lambda: "0.26.0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of images, with one in it."""
    path = tmp_path / "programs"
    Kept(path).keep(SOURCE, IMAGE)
    return path


def _file(directory: Path) -> Path:
    (path,) = directory.glob(f"{SOURCE.digest}-*")
    return path


def test_what_was_kept_is_found(directory: Path) -> None:
    assert Kept(directory).find(SOURCE) == IMAGE


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "b.c"},
        {"text": "int a ;"},
        {"flags": ("-DA=2",)},
        {"flags": ("-DA=1", "-DB")},
        {"programs": ("a", "b")},
    ],
)
def test_of_anything_else_it_is_not(directory: Path, changes: dict[str, object]) -> None:
    other = dataclasses.replace(SOURCE, **changes)  # type: ignore[arg-type]
    assert Kept(directory).find(other) is None
    assert pinned_programs.name_of([other]) != pinned_programs.name_of([SOURCE])


def test_nor_for_another_kernel(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, machine = pinned_programs.name_of([SOURCE]), os.uname()
    other = os.uname_result((*machine[:3], f"{machine.version} rebuilt", machine.machine))
    monkeypatch.setattr(os, "uname", lambda: other)
    assert Kept(directory).find(SOURCE) is None
    assert pinned_programs.name_of([SOURCE]) != name


def test_of_another_compiler_it_is_not_and_without_one_it_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pinned_programs.name_of([SOURCE])
    monkeypatch.setattr(compiler, "version", lambda: "0.31.0")
    assert Kept(directory).find(SOURCE) is None
    assert pinned_programs.name_of([SOURCE]) != name
    monkeypatch.setattr(compiler, "version", lambda: "")
    assert Kept(directory).find(SOURCE) == IMAGE
    assert name.startswith(pinned_programs.name_of([SOURCE]))


def _damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another_source(path: Path) -> None:
    other = dataclasses.replace(SOURCE, text="int b;")
    Kept(path.parent).keep(other, IMAGE)
    (found,) = path.parent.glob(f"{other.digest}-*")
    found.rename(path)


def _no_image(path: Path) -> None:
    broken = Image("a.c", "GPL", b"", (), (Program("a", _EXIT, ((0, 3),), (b"", 0), (b"", 0)),))
    Kept(path.parent).keep(SOURCE, broken)


def _writable(path: Path) -> None:
    path.chmod(0o620)


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_damaged, "it is damaged: compiled anew"),
        (_truncated, "it is damaged: compiled anew"),
        (_empty, "it is damaged: compiled anew"),
        (_of_another_source, "it is of another source: compiled anew"),
        (_no_image, "its parts do not fit together: compiled anew"),
        (_writable, "others may write to it: compiled anew"),
        (_linked, "symbolic links"),
        (_a_pipe, "no file of ours: compiled anew"),
    ],
)
def test_what_cannot_be_trusted_is_compiled_anew(
    directory: Path, harm: Callable[[Path], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _file(directory)
    harm(path)
    assert Kept(directory).find(SOURCE) is None
    (line,) = caplog.messages
    assert said in line
    assert str(path) in line
    Kept(directory).keep(SOURCE, IMAGE)
    assert Kept(directory).find(SOURCE) == IMAGE


def test_a_file_of_another_user_is_refused(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require("root")
    os.chown(_file(directory), 1000, 1000)
    assert Kept(directory).find(SOURCE) is None
    assert "it belongs to user 1000: compiled anew" in caplog.text


@pytest.mark.parametrize("above", [False, True])
def test_a_directory_of_others_is_neither_read_nor_written(
    directory: Path, above: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (directory.parent if above else directory).chmod(0o777)
    files = list(directory.iterdir())
    found = Kept(directory)
    assert found.find(SOURCE) is None
    found.keep(dataclasses.replace(SOURCE, text="int b;"), IMAGE)
    with found.alone():
        pass
    assert list(directory.iterdir()) == files
    assert "others may write to it: what is compiled is not kept" in caplog.text


def test_a_directory_that_cannot_be_made_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    found = Kept(tmp_path / "file" / "programs")
    found.keep(SOURCE, IMAGE)
    assert found.find(SOURCE) is None
    assert "Not a directory: what is compiled is not kept" in caplog.text


def test_those_not_used_for_longest_go(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_MOST_FILES", 3)
    others = [dataclasses.replace(SOURCE, text=f"int b{n};") for n in range(4)]
    for age, source in enumerate((SOURCE, *others)):
        found = Kept(directory)
        with found.alone():
            found.keep(source, IMAGE)
        (path,) = directory.glob(f"{source.digest}-*")
        os.utime(path, ns=(age, age))
        found.find(SOURCE)  # its time is now
    there = [source for source in (SOURCE, *others) if Kept(directory).find(source)]
    assert there == [SOURCE, *others[2:]]


def test_one_daemon_of_a_host_compiles_at_a_time(directory: Path) -> None:
    script = (
        "import logging, sys; from pathlib import Path\n"
        "from colo_ebpf.datapath.bpf.image_cache import Kept\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "with Kept(Path(sys.argv[1])).alone(): print('alone', flush=True)"
    )
    with Kept(directory).alone():
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(directory)], stdout=subprocess.PIPE
        )
        assert other.stdout
        assert b"waiting for another daemon of this host" in other.stdout.readline()
    assert other.communicate(timeout=60)[0] == b"alone\n"


def test_descriptors_leave_the_code_and_come_back() -> None:
    code = _LOAD_MAP + _EXIT
    plain, maps = image.unbound(code, {7: 3})
    assert (plain[4:8], maps) == (bytes(4), ((0, 3),))
    program = Program("a", plain, ((0, 0),), (b"", 0), (b"", 0))
    assert IMAGE.code(program, [7]) == code
    with pytest.raises(LoadError, match="instruction 0 refers to no map we know"):
        image.unbound(code, {8: 0})


def test_what_no_image_is_is_refused() -> None:
    for data in (b"", b"\0", image.encode(IMAGE)[:-1], image.encode(IMAGE) + b"\0"):
        with pytest.raises(LoadError, match="no image of programs"):
            image.decode(data)
    assert image.decode(image.encode(IMAGE)) == IMAGE


def test_the_pins_are_no_part_of_a_source() -> None:
    for source in loader.shipped(loader.Sizes(256, 1024, 64)):
        assert not any("COLO_PIN" in flag for flag in source.flags)
