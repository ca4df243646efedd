# SPDX-License-Identifier: GPL-2.0-only
"""What is held, as Wireshark would read it."""

from __future__ import annotations

import io
from pathlib import Path

import pcapng
import pytest
from pcapng.blocks import EnhancedPacket

from colo_ebpf.datapath.maps import pcap
from colo_ebpf.errors import DatapathError
from tests.bpf.frames import datagram, segment
from tests.bpf.rig import established


def _packets(raw: bytes) -> list[EnhancedPacket]:
    blocks = pcapng.FileScanner(io.BytesIO(raw))
    return [block for block in blocks if isinstance(block, EnhancedPacket)]


def test_held_frames_with_their_reasons() -> None:
    with established() as rig:
        sent = segment(1001, b"you are #1", ack=5001)
        rig.from_vm(sent)
        rig.from_vm(datagram(b"waits"))
        rig.from_peer(segment(1001, b"you are #2", ack=5001), 1)
        store, out = pcap.HoldStore(rig._pins), io.BytesIO()
        writer = pcap.Writer(out, "t")
        for frame in pcap.follow(store, 0):
            writer.write(frame)
        store.close()
        stream, other = _packets(out.getvalue())
        (event,) = rig.plane.mismatches()
        assert stream.packet_data == bytes(sent)
        assert other.packet_data == bytes(datagram(b"waits"))
        said = stream.options["opt_comment"]
        assert "held (stream) in epoch 1: tcp 192.0.2.10:80 > 192.0.2.1:4711" in said
        assert f"differ before 1011: primary {event.pvm_digest:016x}" in said
        assert "held (dgram)" in other.options["opt_comment"]
        assert "differ" not in other.options["opt_comment"]
        assert 0 <= other.timestamp - stream.timestamp < 1


def test_a_frame_is_written_once_however_often_it_is_seen() -> None:
    with established() as rig:
        rig.from_vm(datagram(b"one"))
        store = pcap.HoldStore(rig._pins)
        assert len(list(pcap.follow(store, 0.05))) == 1
        store.close()


def test_a_vm_without_maps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match="colo_hold"):
        pcap.HoldStore(tmp_path)
