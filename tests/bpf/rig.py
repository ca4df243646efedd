# SPDX-License-Identifier: GPL-2.0-only
"""One host's data plane in a namespace of its own, with every wire in the test's hands.

The VM is a file descriptor of the tap, the client a packet socket behind the bridge, the peer's
plane a UDP socket that speaks VXLAN with a group tag. The programs and the set-up are the shipped
ones.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import ClassVar

from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from colo_ebpf.bench.kernel.gso import GsoBed
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.datapath.bpf.loader import Sizes, frame_bytes
from colo_ebpf.datapath.bpf.ringbuf import Ring
from colo_ebpf.datapath.bpf.syscalls import RawMap, Runner, TestRun, test_run
from colo_ebpf.datapath.maps.dump import held_slots
from colo_ebpf.datapath.net import namespaces, netdev
from colo_ebpf.datapath.net.netdev import Offload
from colo_ebpf.lab.bed import (
    CLIENT_END,
    IPV4,
    PEER_END,
    PORT,
    UPLINK,
    VNET_HEADER,
    VNI,
    Bed,
    Ends,
    packet_socket,
    take_address,
    tunnel_socket,
    tunnelled,
)
from colo_ebpf.lab.frames import CLIENT_MAC, VM_MAC
from colo_ebpf.model import Mode, PlaneEventKind, VmRole
from tests.bpf.frames import offloaded, request, segment
from tests.netns import enter, readable

_WAIT_S = 2.0
_LARGEST = 65536 + 64  # bytes of a frame with what is before it
_BACKLOGS = 4
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_VNET_HDR, _VLAN_VALID = 263, 8, 15, 16


class Rig:
    """Use with `with Rig(...) as rig`: inside, the thread is in the host's namespace.

    Compiling takes seconds, so that rigs of one kind share their programs; each starts with empty
    maps. `close_all` ends them.
    """

    _made: ClassVar[Iterator[int]] = itertools.count()
    _pool: ClassVar[dict[tuple[VmRole, int, int, int, bool, Ends], Rig]] = {}

    def __new__(
        cls,
        role: VmRole = VmRole.PRIMARY,
        slots: int = 1024,
        mtu: int = 1500,
        flows: int = 256,
        large: bool = False,
        *,
        ends: Ends = IPV4,
    ) -> Rig:
        """`large`: frames of the SVM arrive as large as its NIC took them (GSO)."""
        kind = (role, slots, mtu, flows, large, ends)
        if kind not in cls._pool:
            cls._pool[kind] = super().__new__(cls)
            sizes = Sizes(flows, slots, 64, frame_bytes(mtu))
            cls._pool[kind]._build(role, mtu, sizes, GsoBed if large else Bed, ends)
        return cls._pool[kind]

    @classmethod
    def close_all(cls) -> None:
        """Remove every namespace, mount and pin the rigs made."""
        while cls._pool:
            cls._pool.popitem()[1]._stack.close()

    def __enter__(self) -> Rig:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(os.open(f"/var/run/netns/{self._bed.host}", os.O_RDONLY))
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._cpus)})  # one queue: what comes later is behind
        self._empty()
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._cpus)
        enter(self._home)

    def close(self) -> None:
        """Before `close_all`: a rig of unusual size."""
        for kind, rig in list(Rig._pool.items()):
            if rig is self:
                del Rig._pool[kind]
        self._stack.close()

    def _build(self, role: VmRole, mtu: int, sizes: Sizes, kind: type[Bed], ends: Ends) -> None:
        self._stack = contextlib.ExitStack()
        tag = f"colot{os.getpid()}x{next(self._made)}"
        bed = kind(tag, sizes, role=role, mtu=mtu, nics=2, ends=ends)
        self._bed = self._stack.enter_context(bed)
        self.plane, self.peer, self._pins = bed.plane, bed.peer, bed.pins
        self.tap, self.tap1 = bed.taps
        self.client = namespaces.run_in(bed.client_side, lambda: packet_socket(CLIENT_END))
        self._stack.callback(self.client.close)
        namespaces.run_in(bed.host, self._open)

    def _open(self) -> None:
        self._events: list[str] = []
        self._hold = self._bed.map("colo_hold")
        self._ring = Ring(self.plane._code.maps["colo_ring"], self._on_event)
        self._stack.callback(self._ring.close)
        self._out = {name: packet_socket(name, 0) for name in (UPLINK, "tap0", "tap1")}
        for s in self._out.values():
            self._stack.callback(s.close)

    def _empty(self) -> None:
        """Every map as after loading; what is still on the wires is read away."""
        self._kept: list[bytes] = []
        self.events()
        self.plane.set_mode(Mode.WITHHOLD)
        self.await_line()
        self._bed.empty()
        # a test may have been ahead of the clock
        self.plane.sweep._age_due_ns = self.plane.sweep._due_ns = 0
        for wire in (self.client, self.peer, self.tap):
            while readable(wire):
                os.read(wire if isinstance(wire, int) else wire.fileno(), 65536)

    # -- state --

    def pair(self, epoch: int = 1, mode: Mode = Mode.PRIMARY) -> None:
        """Paired with the peer, in an open epoch, the peer's plane heard."""
        self._bed.pair(epoch, mode)

    def count(self, program: str, verdict: str, reason: str) -> int:
        """Packets counted under one row."""
        return self._bed.count(program, verdict, reason)

    def events(self) -> list[str]:
        """Kinds of the events since the last call, as the control plane gets them."""
        self._ring.consume()
        kinds, self._events = self._events, []
        return kinds

    def _on_event(self, record: bytes) -> None:
        mismatch = abi.Mismatch.from_buffer_copy(record)
        self._events.append(PlaneEventKind(mismatch.kind).name.lower())

    def run(self, program: str, frame: Packet | bytes, mark: int = 0) -> TestRun:
        """One of the shipped programs on one frame (BPF_PROG_TEST_RUN), as on the first tap."""
        return test_run(self.plane.programs[program], bytes(frame), context=_context(mark))

    def run_many(self, program: str, frames: Iterable[bytes]) -> None:
        """Like `run`, fast, for frames of one length whose verdict the counters tell."""
        frames = iter(frames)
        first = next(frames)
        runner = Runner(self.plane.programs[program], first, _context())
        for frame in itertools.chain([first], frames):
            runner.put(frame)
            runner.run()

    def map(self, name: str) -> RawMap:
        """One of the VM's pinned maps."""
        return self._bed.map(name)

    def flows(self) -> dict[bytes, abi.Flow]:
        """The flow table as it is now."""
        table = self.map("colo_flows")
        known = list(table.keys())
        return {key: abi.Flow.from_buffer_copy(table.get(key) or b"") for key in known}

    def flow(self) -> abi.Flow:
        """The entry of the one connection there is."""
        (flow,) = self.flows().values()
        return flow

    def change_flows(self, **fields: int) -> None:
        """All entries hold these values from now on."""
        table = self.map("colo_flows")
        for key, flow in self.flows().items():
            for name, value in fields.items():
                setattr(flow, name, value)
            table.set(key, bytes(flow))

    # -- frames in --

    def from_vm(self, frame: Packet) -> None:
        """The local VM sends."""
        self.from_vm_raw(bytes(frame))

    def from_vm_raw(self, frame: bytes) -> None:
        """The local VM sends."""
        self._bed.from_vm_raw(frame)

    def from_vm_vnet(self, frame: bytes) -> None:
        """The local VM sends a frame with a virtio header of its own."""
        os.write(self.tap, frame)

    def from_second_nic(self, frame: Packet) -> None:
        """The local VM sends from its other NIC."""
        os.write(self.tap1, VNET_HEADER + bytes(frame))

    def from_vm_offloaded_udp(self, frame: Packet, segment_bytes: int) -> None:
        """The local VM leaves UDP segmentation to its NIC (virtio 1.3: GSO_UDP_L4)."""
        header = struct.pack("=BBHHHH", 1, 5, 42, segment_bytes, 34, 6)
        os.write(self.tap, header + bytes(frame))

    def from_vm_offloaded(self, frame: Packet, segment_bytes: int = 0) -> None:
        """The local VM leaves checksum and, with `segment_bytes`, segmentation to its NIC."""
        os.write(self.tap, offloaded(frame, segment_bytes))

    def from_peer_offloaded(self, frame: Packet, segment_bytes: int, tag: int = 1) -> None:
        """The SVM did the same: a large rig only."""
        self.from_peer_vnet(offloaded(frame, segment_bytes), tag)

    def from_both_offloaded(self, ours: Packet, theirs: Packet, segment_bytes: int) -> None:
        """Both at once, as far as a test can: the first waits 10 ms at most. A large rig only."""
        pvm, svm = offloaded(ours, segment_bytes), offloaded(theirs, segment_bytes)
        os.write(self.tap, pvm)
        self.from_peer_vnet(svm, 1)

    def from_peer_vnet(self, frame: bytes, tag: int) -> None:
        """The SVM sends a frame with a virtio header of its own: a large rig only."""
        assert isinstance(self._bed, GsoBed)
        self._bed.from_peer_cut(frame, tag)

    def from_peer(self, frame: Packet, tag: int, vni: int = VNI, nic: int = 0) -> None:
        """A frame arrives over the link."""
        self.from_peer_raw(bytes(frame), tag, vni, nic)

    def from_peer_raw(self, frame: bytes, tag: int, vni: int = VNI, nic: int = 0) -> None:
        """A frame arrives over the link."""
        self._bed.from_peer_raw(frame, tag, vni, nic)

    def from_elsewhere(self, ends: Ends, frame: Packet, tag: int) -> None:
        """A frame arrives over the link from another address, which the peer's host takes."""

        def send() -> None:
            take_address(PEER_END, ends.peer, ends.prefix_length)
            with tunnel_socket(ends.peer) as other:
                other.sendto(tunnelled(bytes(frame), tag), (ends.local, PORT))

        namespaces.run_in(self._bed.peer_side, send)

    def from_peer_in_pages(self, frame: Packet, head_bytes: int) -> None:
        """A frame arrives over the link of which only so many bytes lie in the skb's head."""
        packet = tunnelled(bytes(frame), 1)
        cut = len(packet) - len(frame) + head_bytes
        self._bed.send_to_link(packet[:cut], socket.MSG_MORE)  # what is appended goes to pages
        self._bed.send_to_link(packet[cut:])

    @staticmethod
    def let_the_wire_cut(cut: bool) -> None:
        """The client's side of the host cuts and sums what passes, or leaves it as it is."""
        for offload in (Offload.TSO, Offload.TX_CHECKSUM):
            netdev.set_offload(UPLINK, offload, not cut)

    def silence(self) -> None:
        """Nothing of the peer was heard for long enough."""
        self.plane._set_live(LiveWord.HEARD_NS, 1)

    def to_first_nic(self, frame: bytes) -> None:
        """A client sends; the bridge is not asked where to. A dropped frame counts as sent."""
        with contextlib.suppress(OSError):
            self._out["tap0"].send(frame)

    def to_first_nic_vnet(self, frame: bytes) -> None:
        """The same, with a virtio header, as long as it is."""
        self._out["tap0"].setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        try:
            self.to_first_nic(frame)
        finally:
            self._out["tap0"].setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 0)

    def to_second_nic(self, frame: Packet) -> None:
        """A client of the VM's other NIC sends; the bridge is not asked where to."""
        self._out["tap1"].send(bytes(frame))

    def from_client(self, frame: Packet) -> None:
        """The client sends."""
        self.from_client_raw(bytes(frame))

    def from_client_raw(self, frame: bytes) -> None:
        """The client sends."""
        self.client.send(frame)

    # -- frames out --

    def to_client(self) -> list[Packet]:
        """What reached the client side since the last call, up to a mark sent behind it."""
        raw, self._kept = self._kept + self.to_client_raw(), []
        return [frame for frame in map(Ether, raw) if frame.src == VM_MAC]

    def to_client_raw(self) -> list[bytes]:
        """The same as bytes, with what the hosts say of themselves.

        A frame goes through this CPU's backlog up to four times (link, tunnel, tap, client): behind
        as many marks, it is out.
        """
        self.await_line()
        out: list[bytes] = []
        for _ in range(_BACKLOGS):
            mark = self._mark_to_client()
            while (frame := self._next_to_client()) != mark:
                if frame[12:14] != b"\x88\xb6":
                    out.append(frame)
        return out

    def await_line(self) -> None:
        """Nothing is in the delay line: what was has left, or is held."""
        deadline = time.monotonic() + _WAIT_S
        while self.parked():
            assert time.monotonic() < deadline, "a parked frame does not come back"

    def await_empty_store(self) -> None:
        """Nothing is held any more: a carrier may have to go through the delay line for that."""
        deadline = time.monotonic() + _WAIT_S
        while self.plane.held().frames:
            assert time.monotonic() < deadline, "frames are held still"

    def parked(self) -> int:
        """Frames in the delay line."""
        slots = held_slots(self._hold) if self.plane.live()["held"] else []
        return sum(slot.kind == abi.SlotKind.PARKED for _, slot in slots)

    def _settled(self) -> None:
        """What was sent has arrived; what a client got stays to be read."""
        self._kept += self.to_client_raw()

    def _next_to_client(self) -> bytes:
        ready = readable(self.client, _WAIT_S)
        assert ready, "the mark behind the frames did not arrive"
        return _receive(self.client)

    def to_peer(self) -> list[tuple[int, Packet]]:
        """(tag, frame) that went over the link and is there now."""
        out = []
        self._settled()
        while readable(self.peer):
            data = self.peer.recv(_LARGEST)
            out.append((struct.unpack("!H", data[2:4])[0], Ether(data[8:])))
        return out

    def to_peer_ids(self) -> list[int]:
        """The VXLAN ids of what went over the link and is there now."""
        out = []
        self._settled()
        while readable(self.peer):
            out.append(struct.unpack("!I", self.peer.recv(_LARGEST)[4:8])[0] >> 8)
        return out

    @staticmethod
    def vxlan_id(nic: int) -> int:
        """That of one NIC's frames."""
        return VNI * 8 + nic

    def to_vm(self) -> list[Packet]:
        """What reached the VM's tap and is there now."""
        out = []
        self._settled()
        while readable(self.tap):
            out.append(Ether(os.read(self.tap, _LARGEST)[len(VNET_HEADER) :]))
        return [frame for frame in out if frame.src == CLIENT_MAC]

    def _mark_to_client(self) -> bytes:
        mark = bytes(Ether(src="02:00:00:00:00:99", dst=CLIENT_MAC, type=0x88B6) / os.urandom(50))
        self._out["up0"].send(mark)
        return mark


def _receive(s: socket.socket) -> bytes:
    """A frame as it was on the wire: the kernel hands its outer VLAN tag over separately."""
    frame, extra, _, _ = s.recvmsg(65600, 64)
    for level, kind, data in extra:
        if (level, kind) != (_SOL_PACKET, _PACKET_AUXDATA):
            continue
        status, _, _, _, _, tci, protocol = struct.unpack("=IIIHHHH", data)
        if status & _VLAN_VALID:
            frame = frame[:12] + struct.pack("!HH", protocol, tci) + frame[12:]
    return frame


def _context(mark: int = 0) -> bytes:
    """struct __sk_buff of a frame on the first tap."""
    return struct.pack("=11I", 0, 0, mark, 0, 0, 0, 0, 0, 0, 0, netdev.index_of("tap0"))


@contextlib.contextmanager
def established(
    epoch: int = 1, isn: int = 1000, client: int = 5000, slots: int = 1024, ends: Ends = IPV4
) -> Iterator[Rig]:
    """A rig with one connection verified by both VMs: next is isn + 1, floor client + 1."""
    with Rig(slots=slots, ends=ends) as rig:
        rig.pair(epoch)
        rig.from_client(request(client, flags="S"))
        rig.from_vm(segment(isn, ack=client + 1, flags="SA", options=[("WScale", 2)]))
        syn_ack = segment(isn + 70000, ack=client + 1, flags="SA", options=[("WScale", 2)])
        rig.from_peer(syn_ack, epoch)
        assert [p[TCP].flags for p in rig.to_client()] == ["SA"]
        rig.to_peer()
        yield rig
