# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU will open is opened with QEMU's rights, not with those of a root shell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colo_ebpf.cli import doctor, images, main
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import load_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control.host.capabilities import as_daemon
from colo_ebpf.errors import ConfigError
from tests.capabilities import require

SOMEBODY = 12345


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu-nbd")  # of the same package as qemu-img


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration that names what is there. Only root may pass below pytest's directory."""
    for name in ("vmlinuz", "key", "one.raw"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    text = EXAMPLE.replace("/var/lib/colo-ebpf/web.raw", str(tmp_path / "one.raw"))
    text = text.replace("/var/lib/colo-ebpf/vmlinuz", str(tmp_path / "vmlinuz"))
    text = text.replace("/etc/colo-ebpf/key", str(tmp_path / "key"))
    text = text.replace("/dev/shm/colo-ebpf", str(tmp_path / "overlays"))
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def _of(file: Path) -> Config:
    return load_config(file)


def _close_to_root(path: Path) -> None:
    """As an image that another hypervisor, with a user of its own, has left."""
    path.chmod(0o600)
    os.chown(path, SOMEBODY, SOMEBODY)


def _check(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main.main(["config", "check", str(file)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_what_qemu_can_open_is_in_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _check(file, capsys)
    first, ports = said.splitlines()
    assert (code, first) == (0, f"{file}: in order (images {images.AS_ROOT})")
    assert ports.startswith("link device colo-")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("one.raw", "disk 0: image {}: Permission denied; the daemon is root, and bound to file"),
        ("vmlinuz", "kernel: {}: Permission denied; the daemon is root, and bound"),
    ],
)
def test_files_of_others_are_refused_though_a_root_shell_reads_them(
    file: Path, capsys: pytest.CaptureFixture[str], what: str, words: str
) -> None:
    path = file.with_name(what)
    _close_to_root(path)
    path.read_bytes()
    code, said = _check(file, capsys)
    assert code == 2
    assert words.format(path) in said
    found = {one.name: one for one in map(_finding, doctor._configured(_of(file)))}
    name = words.partition(":")[0]
    assert not found[name].ok
    assert "Permission denied" in found[name].detail
    path.read_bytes()  # this process may still do what it could


def _finding(one: tuple[str, images.Check]) -> doctor.Finding:
    return doctor._look(*one)


def test_a_directory_of_another_is_no_place_for_overlays(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlays = file.with_name("overlays")
    overlays.mkdir(0o755)
    os.chown(overlays, SOMEBODY, SOMEBODY)
    assert f"the daemon cannot write to {overlays}" in _check(file, capsys)[1]


def test_an_image_behind_two_names_is_one(file: Path, tmp_path: Path) -> None:
    (tmp_path / "two.raw").symlink_to(tmp_path / "one.raw")
    table = f'[[vm.disk]]\npath = "{tmp_path}/two.raw"\noverlay-dir = "{tmp_path}"\n\n[host]'
    file.write_text(file.read_text().replace("[host]", table))
    with pytest.raises(ConfigError, match=r"disk 1: .*two\.raw: is the image of disk 0 too"):
        images.require(_of(file), file)


def test_programs_that_are_started_gain_nothing(tmp_path: Path) -> None:
    """As under the unit: QEMU is root, and would get everything back by being executed."""
    path = tmp_path / "theirs"
    path.touch()
    _close_to_root(path)

    def read() -> int:
        return os.waitstatus_to_exitcode(os.system(f"cat {path} 2>/dev/null"))

    assert read() == 0
    assert as_daemon(read) == 1
    assert read() == 0
