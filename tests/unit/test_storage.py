# SPDX-License-Identifier: GPL-2.0-only
"""What is decided about images and exports, without either."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.errors import StorageError
from colo_ebpf.storage import image, overlay
from colo_ebpf.storage.nbd import Extent, clipped
from colo_ebpf.storage.preflight import ExportFacts, LocalDisk, objections, wrong_names
from colo_ebpf.storage.verify import Range, differing, merged, to_read
from tests.capabilities import require

LOCAL = LocalDisk("parent0", "raw", 1 << 20, 512)
REMOTE = ExportFacts(
    where="export parent0 on 192.0.2.2:10809",
    size_bytes=1 << 20,
    read_only=False,
    can_flush=True,
    can_fua=True,
    can_zero=True,
    minimum_bytes=1,
    maximum_bytes=32 << 20,
)


def test_a_qemus_export_of_the_same_size_is_accepted() -> None:
    assert objections(LOCAL, REMOTE) == []
    assert objections(replace(LOCAL, format="qcow2"), replace(REMOTE, minimum_bytes=512)) == []
    assert objections(LOCAL, replace(REMOTE, minimum_bytes=0, maximum_bytes=0)) == []
    of_4096 = replace(LOCAL, sector_bytes=4096)
    assert objections(of_4096, replace(REMOTE, minimum_bytes=4096)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size_bytes": 1 << 21}, "differ in size: 1048576 bytes here, 2097152 bytes in export"),
        ({"read_only": True}, "is read-only; the image must be writable"),
        ({"can_flush": False}, "does not offer flush"),
        ({"can_fua": False}, "does not offer forced writes"),
        ({"can_zero": False}, "does not offer writing zeroes"),
        ({"minimum_bytes": 4096}, "takes no requests below 4096 bytes"),
        ({"maximum_bytes": 4096}, "takes requests of at most 4096 bytes"),
    ],
)
def test_each_lack_is_named_with_what_to_do(change: dict[str, Any], words: str) -> None:
    (said,) = objections(LOCAL, replace(REMOTE, **change))
    assert words in said
    assert REMOTE.where in said
    assert ";" in said, "what to do comes after what is wrong"


def test_every_lack_is_named_at_once() -> None:
    bad = replace(REMOTE, size_bytes=512, read_only=True, can_flush=False)
    assert len(objections(replace(LOCAL, format="vmdk"), bad)) == 4


@pytest.mark.parametrize(
    ("wanted", "offered", "ok"),
    [
        (["parent0"], ["parent0"], True),
        (["parent0", "parent1"], ["parent1", "parent0"], True),
        (["parent0", "parent1"], ["parent0"], False),
        (["parent0"], ["parent0", "parent1"], False),
        (["parent0"], [], False),
    ],
)
def test_both_hosts_need_the_same_disks(wanted: list[str], offered: list[str], ok: bool) -> None:
    assert (wrong_names(wanted, offered, "192.0.2.2:10809") == []) is ok


ZERO = 2  # NBD_STATE_ZERO


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ([(0, 8, ZERO)], [(0, 8, ZERO)], ([], 8)),
        ([(0, 8, ZERO)], [(0, 8, 0)], ([(0, 8)], 8)),
        ([(0, 8, 0)], [(0, 4, 0)], ([(0, 4)], 4)),
        ([(0, 2, ZERO), (2, 6, 0)], [(0, 6, ZERO), (6, 2, ZERO)], ([(2, 6)], 8)),
        ([(0, 4, ZERO), (4, 4, 0)], [(0, 2, 0), (2, 6, ZERO)], ([(0, 2), (4, 4)], 8)),
    ],
)
def test_what_both_call_zero_is_not_read(
    one: list[tuple[int, int, int]],
    other: list[tuple[int, int, int]],
    wanted: tuple[list[tuple[int, int]], int],
) -> None:
    ranges, end = to_read([Extent(*e) for e in one], [Extent(*e) for e in other])
    assert ([(r.offset_bytes, r.length_bytes) for r in ranges], end) == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([8, 3], [(4, 8, 3)]),
        ([4, 1, 4, 2], [(4, 4, 1), (8, 4, ZERO)]),
        ([100, 0], [(4, 8, 0)]),
        ([8, 0, 8, 3], [(4, 8, 0)]),
        ([], [(4, 8, 0)]),
    ],
)
def test_a_servers_extents_are_cut_to_what_was_asked(
    words: list[int], wanted: list[tuple[int, int, int]]
) -> None:
    assert clipped(words, 4, 8) == [Extent(*one) for one in wanted]


@given(st.lists(st.booleans(), min_size=1, max_size=24), st.integers(0, 511))
def test_exactly_the_sectors_that_differ_are_told(differs: list[bool], short: int) -> None:
    """The last sector may be cut short."""
    size = 512 * len(differs) - short
    one, other = bytearray(size), bytearray(size)
    for n, differ in enumerate(differs):
        if differ:
            other[min(512 * n + 7, size - 1)] ^= 1
    told = differing(1 << 20, one, other)
    sectors = {
        n for r in told for n in range((r.offset_bytes - (1 << 20)) // 512, -(-r.end_bytes // 512))
    }
    touched = {
        n
        for n in range(len(differs))
        if one[512 * n : 512 * n + 512] != other[512 * n : 512 * n + 512]
    }
    assert {n for n in sectors if n < len(differs)} >= touched
    assert sum(r.length_bytes for r in told) == sum(
        len(one[512 * n : 512 * n + 512]) for n in touched
    )
    assert all(a.end_bytes < b.offset_bytes for a, b in pairwise(told))


def test_ranges_that_touch_are_one() -> None:
    assert merged([Range(0, 4), Range(4, 4), Range(16, 4)]) == [Range(0, 8), Range(16, 4)]


def _image(path: Path, image_format: str, size: str) -> Path:
    require("qemu-nbd")  # of the same package as qemu-img
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, path, size], check=True)
    return path


def test_images_are_looked_at_while_they_are_in_use(tmp_path: Path) -> None:
    raw, qcow2 = _image(tmp_path / "r", "raw", "1M"), _image(tmp_path / "q", "qcow2", "2M")
    assert image.look(raw, "raw", 512) == image.ImageFacts("raw", 1 << 20, "file")
    assert image.look(qcow2, "qcow2", 512) == image.ImageFacts("qcow2", 2 << 20, "file")
    with pytest.raises(StorageError, match='holds a qcow2 image, but its format is "raw"'):
        image.look(qcow2, "raw", 512)
    with pytest.raises(StorageError, match="not in qcow2 format"):
        image.look(raw, "qcow2", 512)
    with pytest.raises(StorageError, match="does not exist; create it"):
        image.look(tmp_path / "none", "raw", 512)
    with pytest.raises(StorageError, match="is no regular file and no block device"):
        image.look(tmp_path, "raw", 512)


def test_an_image_is_a_whole_number_of_the_guests_sectors(tmp_path: Path) -> None:
    odd = _image(tmp_path / "r", "raw", str(9 * 512))
    image.look(odd, "raw", 512)
    with pytest.raises(StorageError, match="4608 bytes are no whole number of sectors of 4096"):
        image.look(odd, "raw", 4096)


def test_the_room_for_overlays_is_that_of_the_nearest_directory(tmp_path: Path) -> None:
    assert "MiB free" in overlay.check_room(tmp_path / "not" / "yet", 0)
    with pytest.raises(StorageError, match="set a smaller overlay-limit-mib"):
        overlay.check_room(tmp_path, 1 << 60)


def test_what_overlays_occupy_is_counted_and_shared(tmp_path: Path) -> None:
    one, other = tmp_path / "active0.qcow2", tmp_path / "hidden0.qcow2"
    assert overlay.used_bytes((one, other)) == 0
    one.write_bytes(bytes(64 << 10))
    with other.open("wb") as file:
        file.truncate(1 << 30)  # a hole is no room
    assert 64 << 10 <= overlay.used_bytes((one, other)) < 1 << 20
    single = overlay.share_bytes(tmp_path, (one, other), 1)
    assert overlay.share_bytes(tmp_path, (one, other), 4) == pytest.approx(single / 4, rel=0.1)
    assert overlay.free_bytes(tmp_path / "none") == 0
