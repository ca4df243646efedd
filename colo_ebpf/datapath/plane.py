# SPDX-License-Identifier: GPL-2.0-only
"""The data plane of one VM here: `interfaces.Plane` over pinned maps and attached programs."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from colo_ebpf.datapath import upgrade
from colo_ebpf.datapath.bpf import abi, loader, pinned_programs
from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.datapath.bpf.image import Source
from colo_ebpf.datapath.bpf.pins import Pins
from colo_ebpf.datapath.bpf.ringbuf import Ring
from colo_ebpf.datapath.bpf.syscalls import ArrayWord, RawMap, Runner, obj_get, test_run
from colo_ebpf.datapath.maps.decode import (
    count_index,
    count_rows,
    event_of,
    late_counts,
    mismatch_rows,
)
from colo_ebpf.datapath.maps.hold_store import HeldSlots
from colo_ebpf.datapath.maps.seqadj import LastingOffsets
from colo_ebpf.datapath.net import callers, netdev, ownership, tunnel, tuntap
from colo_ebpf.datapath.net.changes import Changes
from colo_ebpf.datapath.release import Release
from colo_ebpf.datapath.spec import PlaneSpec
from colo_ebpf.datapath.sweep import Sweep
from colo_ebpf.datapath.wiring import Indices, Wiring
from colo_ebpf.errors import AttachError
from colo_ebpf.model import (
    Counter,
    FlushReport,
    HeldReport,
    Lack,
    Lateness,
    Mode,
    Pairing,
    Phase,
    PlaneEvent,
    Turn,
    VmRole,
    Waiting,
)

_log = logging.getLogger(__name__)

_STATE = ("colo_conf", "colo_turn", "colo_live", "colo_hold", "colo_mism", "colo_macs")
_STATS, _LATE = "colo_stats", "colo_late"
_TABLES = ("colo_offs", "colo_last", "colo_flows", "colo_dgrams")
_FAREWELLS = 3  # copies: the link may lose some
_BEATS_ALONE = 5  # heartbeats the plane goes on by itself: a daemon may be kept waiting so long
_BEAT_LOST = 2  # heartbeats without a beacon: its place in the delay line is empty
_AGES_MOST = 512  # frames whose age is looked at
_HIGH_MARK = 3 / 4  # of the hold store: from here on a checkpoint is due


def _own_frame(ethertype: int) -> bytes:
    """The head of a frame that is no VM's."""
    return b"\xff" * 6 + b"\x02" + b"\0" * 5 + struct.pack("!H", ethertype)


def _make(sources: Sequence[Source], pins: Path, cache: Path) -> pinned_programs.Code:
    """Programs that the next daemon can adopt."""
    found = loader.images(sources, cache)
    start = time.monotonic()
    modules = loader.load(found, pins)
    code = pinned_programs.publish(pins, pinned_programs.name_of(sources), modules)
    _log.info("verified %d programs in %.1f s", len(code.programs), time.monotonic() - start)
    return code


class DataPlane:
    """Programs and maps of one VM. Map accesses are synchronous; devices need a thread."""

    def __init__(self, spec: PlaneSpec, code: pinned_programs.Code) -> None:
        self._spec = spec
        self._code = code
        pins = loader.pin_directory(spec.bpffs, spec.vm)
        self._maps = {name: RawMap(obj_get(str(pins / name))) for name in _STATE}
        self._cell = ArrayWord(self._maps["colo_turn"].fd, 0)
        live = self._maps["colo_live"].fd
        self._live_words = {word: ArrayWord(live, word) for word in LiveWord}
        self._stats = RawMap(obj_get(str(pins / _STATS)))
        self._late = RawMap(obj_get(str(pins / _LATE)))
        self._tables = [RawMap(obj_get(str(pins / name))) for name in _TABLES]
        self._of_a_vm = (*self._tables, self._maps["colo_hold"])
        offsets, lasting = self._tables[:2]
        self._lasting = LastingOffsets(offsets, lasting)
        self.sweep = Sweep(self.programs["colo_age"], spec.sizes.flows, lasting, self._live)
        self._held = HeldSlots(self._maps["colo_hold"].fd)
        self._beacon_run = Runner(self.programs["colo_beacon"], self._beacon_frame())
        heartbeat_ns = spec.heartbeat_ms * 1_000_000
        self._alone_ns, self._lost_ns = _BEATS_ALONE * heartbeat_ns, _BEAT_LOST * heartbeat_ns
        self._release = Release(self.programs["colo_flush"], spec.sizes.hold_slots, self._live)
        self._conf = self._first_conf()
        self._callbacks: list[Callable[[PlaneEvent], None]] = []
        self._ring: Ring | None = None
        self.wiring = Wiring(spec, pins, code.programs)
        self._pins: Pins | None = None
        self._changes: Changes | None = None
        self._indices: set[int] = set()  # of the devices that changes are looked at of
        self._hands = asyncio.Lock()  # one thread at a time works on the devices

    @classmethod
    def open(cls, spec: PlaneSpec) -> DataPlane:
        """Adopt, or compile, load and bind. Blocks, for seconds if there is nothing to adopt and
        nothing kept; raises LoadError or DatapathError."""
        loader.require_bpffs(spec.bpffs)
        taps = [nic.tap for nic in spec.nics]
        ownership.require(spec.vm, taps, spec.link_device, spec.vxlan_port)
        upgrade.make_way(spec.bpffs, spec.vm, taps, spec.link_device)
        pins = loader.make_pin_directory(spec.bpffs, spec.vm)
        sources = loader.shipped(spec.sizes)
        code = pinned_programs.adopt(pins, sources, (*_STATE, _STATS, _LATE, *_TABLES))
        if code is not None:
            _log.info("adopted %d programs that are loaded", len(code.programs))
        else:
            code = _make(sources, pins, spec.cache)
            if not any(map(tuntap.in_use, taps)):
                pinned_programs.clear_others(pins, code.name)
        return cls(spec, code)

    def _first_conf(self) -> abi.Conf:
        """The pinned configuration of an earlier daemon, with its hash key, or a new one."""
        raw = self._maps["colo_conf"].get(b"\0" * 4) or b""
        conf = abi.Conf.from_buffer_copy(raw)
        if not conf.key[0]:
            conf.key[0], conf.key[1] = secrets.randbits(64) | 1, secrets.randbits(64) | 1
        sizes = self._spec.sizes
        conf.hold_slots = sizes.hold_slots
        conf.hold_high = int(sizes.hold_slots * _HIGH_MARK)
        conf.dgram_buckets = sizes.dgram_buckets
        conf.tunnel_flags = tunnel.flags(self._spec.frames_address)
        conf.local_ip[:] = tunnel.words(self._spec.frames_address)
        conf.link_timeout_ns = self._spec.link_timeout_ms * 1_000_000
        conf.dgram_timeout_ns = self._spec.notes_last_ms * 1_000_000
        return conf

    def _write_conf(self) -> None:
        self._maps["colo_conf"].set(b"\0" * 4, bytes(self._conf))

    @property
    def programs(self) -> dict[str, int]:
        """Descriptors of all programs, by name."""
        return self._code.programs

    @property
    def sealed(self) -> bool:
        """The link is to be sealed."""
        return self._spec.sealed is not None

    def close(self) -> None:
        """Let go of maps and programs: what is attached and pinned goes on without us."""
        self._held.close()
        for one in (*self._maps.values(), self._stats, self._late, *self._tables):
            os.close(one.fd)
        if self._ring is not None:
            self._ring.close()
        if self._changes is not None:
            self._changes.close()
        self.wiring.close()
        if self._pins is not None:
            self._pins.close()
        self._code.close()

    # -- devices and filters -------------------------------------------------------------

    async def prepare(self) -> None:
        """Make tap and link device, tell the programs their indices. Idempotent."""
        async with self._hands:
            self._tell_indices(await asyncio.to_thread(self.wiring.make_devices))
            await asyncio.to_thread(self.wiring.warn)
            await asyncio.to_thread(self._guard_peer)

    def _tell_indices(self, devices: Indices) -> None:
        for number, index in enumerate(devices.taps):
            self._conf.tap_ifindex[number] = index
        self._conf.link_ifindex, self._conf.park_ifindex = devices.link, devices.line
        self._write_conf()
        for number, nic in enumerate(self._spec.nics):
            mac = bytes.fromhex(nic.mac.replace(":", ""))
            self._maps["colo_macs"].set(struct.pack("=I", number), mac.ljust(8, b"\0"))

    async def take_role(self, role: VmRole) -> None:
        """Attach the primary's or the secondary's programs, each replaced in one step.

        Somebody may have removed a device since: it is made again before.
        """

        def attach() -> Indices:
            devices = self.wiring.make_devices()
            self.wiring.take_role(role)
            pins = loader.pin_directory(self._spec.bpffs, self._spec.vm)
            pinned_programs.clear_others(pins, self._code.name)
            self._pins = self._pins or Pins(pins, pins / self._code.name)
            return devices

        async with self._hands:
            self._tell_indices(await asyncio.to_thread(attach))

    async def join_bridge(self) -> None:
        """Put the VM's taps on the client-side bridges."""
        async with self._hands:
            await asyncio.to_thread(self.wiring.join_bridge)

    async def leave_bridge(self) -> None:
        """Take the VM's taps off the client-side bridges."""
        async with self._hands:
            await asyncio.to_thread(self.wiring.leave_bridge)

    # -- what others do to them ------------------------------------------------------------

    def serves(self) -> None:
        """Of a VM that is adopted: its taps belong on the bridges."""
        self.wiring.on_bridge = True

    def watch(self, changed: Callable[[], None]) -> None:
        """Call back, on the running loop, when anything of ours on this host's devices may have
        been changed. `unharmed` finds what the kernel tells nobody."""
        self._changes = changes = Changes(ipsec=self.sealed)

        def look() -> None:
            if changes.concern(self._indices):
                changed()

        self._indices = self.wiring.indices()
        for fd in changes.fds:
            asyncio.get_running_loop().add_reader(fd, look)

    def unharmed(self) -> bool:
        """Cheap: do the programs run on their hooks, are the pins there?

        True while a thread works on them: the next look tells.
        """
        return self._hands.locked() or (self.wiring.runs() and not self._lacking_pins())

    async def mend(self) -> tuple[list[Lack], list[Lack]]:
        """Look at everything, and put back what is not as it should be: what that was, and what of
        it still is so. Raises DatapathError."""
        async with self._hands:
            found = await asyncio.to_thread(self._lacks)
            left: list[Lack] = []
            if found:
                self._tell_indices(await asyncio.to_thread(self._restore))
                left = await asyncio.to_thread(self._lacks)
            self._indices = self.wiring.indices()
        return found, left

    def _lacks(self) -> list[Lack]:
        return [*self.wiring.lacks(), *self._lacking_pins()]

    def _lacking_pins(self) -> list[Lack]:
        lacking = self._pins.lacking() if self._pins else []
        return [Lack(f"the pin {path} was removed") for path in lacking]

    def _restore(self) -> Indices:
        if self._pins:
            self._pins.restore()
        return self.wiring.restore()

    async def quicken(self, peer_address: str) -> None:
        """`quickack` on the route to the peer."""
        await asyncio.to_thread(netdev.set_quickack, peer_address, self._spec.link_address)
        await asyncio.to_thread(self._guard_peer)

    def _guard_peer(self) -> None:
        """Of this host nobody but root and QEMU's user reaches the peer's QEMU, and nobody but the
        kernel its plane."""
        spec = self._spec
        if not spec.peer_ports:
            return
        try:
            callers.only(spec.peer_callers, spec.peer_address, spec.peer_ports)
            callers.only((0,), spec.frames_peer, (spec.vxlan_port,), callers.UDP)
        except AttachError as e:
            _log.warning("every user of this host can reach disks and plane of the peer: %s", e)

    # -- mode, turn, pairing -------------------------------------------------------------

    def set_mode(self, mode: Mode) -> None:
        """One store decides what may leave from the next packet on."""
        self._conf.mode = mode
        self._write_conf()

    def mode(self) -> Mode:
        """The mode the programs see."""
        return Mode(self._conf.mode)

    def set_turn(self, epoch: int, phase: Phase) -> None:
        """Write the turn cell: one 64-bit word, so it is never seen half written."""
        self._maps["colo_turn"].set(b"\0" * 4, struct.pack("=Q", epoch << 1 | phase))

    def turn(self) -> Turn:
        """The turn cell as the kernel has it."""
        word = self._cell.get()
        return Turn(word >> 1, Phase(word & abi.TURNING_BIT))

    def set_pairing(self, pairing: Pairing | None) -> None:
        """Speak with this peer's plane only; None: with nobody."""
        left = self._conf.vni, bytes(self._conf.peer_ip)
        self._conf.vni = pairing.vni * abi.NICS if pairing else 0
        self._conf.peer_ip[:] = tunnel.words(pairing.peer_address) if pairing else (0,) * 4
        self._set_live(LiveWord.HEARD_NS, 0)
        self._write_conf()
        if left[0] and left[0] != self._conf.vni:
            self._say_farewell(*left)

    def _say_farewell(self, vni: int, peer_ip: bytes) -> None:
        """The other plane may go on without its daemon: it is to let nothing out any more."""
        call = (struct.pack("=I", vni) + peer_ip).ljust(46, b"\0")
        for _ in range(_FAREWELLS):
            test_run(self.programs["colo_farewell"], _own_frame(abi.LEAVE_ETHERTYPE) + call)

    def keep_offsets(self, epoch: int) -> None:
        """Sequence offsets learnt in `epoch` outlive it."""
        self._conf.lasting_epoch = epoch
        self._write_conf()

    async def fold_offsets(self) -> list[bytes]:
        """What the last takeover left in force becomes lasting; returns all lasting offsets."""
        await asyncio.to_thread(self._lasting.fold, int(self._conf.lasting_epoch))
        entries = await asyncio.to_thread(self._lasting.entries)
        self._conf.lasting_epoch, self._conf.lasting = 0, len(entries)
        self._write_conf()
        return entries

    def learn_offsets(self, entries: list[bytes]) -> None:
        """Lasting offsets that the serving host hands over."""
        self._lasting.learn(entries)
        self._conf.lasting += len(entries)
        self._write_conf()

    async def forget(self) -> None:
        """Before a fresh VM: what another one said, held or opened here is none of its.

        A held frame of the VM before would leave at the next takeover, and what is known of its
        connections would be an anchor and a floor for the new one's.
        """
        for one in self._of_a_vm:
            await asyncio.to_thread(one.clear)
        self._set_live(LiveWord.HELD, 0)
        self._set_live(LiveWord.FLOWS, 0)
        self._conf.lasting_epoch, self._conf.lasting = 0, 0
        self._write_conf()

    # -- held frames ---------------------------------------------------------------------

    def flush(self) -> FlushReport:
        """Emit what may leave now; see colo_flush in compare.c."""
        return self._release.flush()

    def repeat(self) -> int:
        """Send what the VM said last as a secondary; see colo_replay.h. Returns how many frames."""
        return self._release.repeat()

    def held(self) -> HeldReport:
        """How much is held, and since when."""
        frames, total, oldest = self._held.report() if self.held_frames() else (0, 0, None)
        return HeldReport(frames, total, oldest, self._spec.sizes.hold_slots)

    def held_frames(self) -> int:
        """How many are held."""
        return self._live(LiveWord.HELD)

    def waiting(self) -> Waiting:
        """What is held, and since when."""
        frames = self.held_frames()
        answer_ns, data_ns, timer_ns = self._held.oldest_ns() if frames else (None, None, None)
        return Waiting(answer_ns, data_ns, timer_ns, frames, self.compared_frames())

    def held_ages(self) -> tuple[int, int]:
        """Of the frames that are held (of some of them, if they are many): how many, and the sum of
        the boot times they came."""
        return self._held.ages(_AGES_MOST) if self.held_frames() else (0, 0)

    def held_ever(self) -> int:
        """Frames that were held, ever."""
        return self._live(LiveWord.HOLD_HEAD)

    def rearm_held(self) -> None:
        """Ask for an event at the next held frame."""
        self._set_live(LiveWord.HELD_ARMED, 1)

    def lateness(self) -> Lateness:
        """How late the SVM was so far; see colo_event.h."""
        return late_counts(self._late.all(), self._late.cpus)

    def loaded(self, at_ns: int) -> None:
        """The SVM has loaded a checkpoint: for a while its lateness is counted apart."""
        self._set_live(LiveWord.LOADED_NS, at_ns)

    def compared_frames(self) -> int:
        """Frames of the PVM that have left because the SVM produced the same, ever."""
        passed = sum(self._passed(prog) for prog in (abi.Prog.CMP_PVM, abi.Prog.PARK))
        return passed + self._live(LiveWord.CARRIED)

    def _passed(self, prog: abi.Prog) -> int:
        row = count_index(prog, abi.Verdict.PASS, abi.Reason.VERIFIED)
        raw = self._stats.get(struct.pack("=I", row)) or b""
        return sum(struct.unpack(f"={len(raw) // 8}Q", raw)[::2])

    # -- link ----------------------------------------------------------------------------

    @property
    def beats_alone(self) -> bool:
        """Once begun beacons go on for a while: there is a delay line."""
        return bool(self._conf.park_ifindex)

    def beat(self, now_ns: int) -> None:
        """Full-sized beacons over the link, one in a heartbeat: the plane is alive, and the link
        carries what it has to. See colo_link.h."""
        if self.beats_alone:
            self._set_live(LiveWord.BEAT_UNTIL_NS, now_ns + self._alone_ns)
            if now_ns - self._live(LiveWord.BEAT_NS) < self._lost_ns:
                return
        self.beacon()

    def beacon(self) -> None:
        """One beacon now."""
        self._beacon_run.run()

    def _beacon_frame(self) -> bytes:
        """It says how large it has to be; the program makes it so."""
        size = struct.pack("=I", self._spec.mtu + netdev.ETHERNET_BYTES)
        return (_own_frame(abi.BEACON_ETHERTYPE) + size).ljust(64, b"\0")

    def link_heard_ns(self) -> int:
        """Boot time of the last frame of the peer's plane; 0: never."""
        return self._live(LiveWord.HEARD_NS)

    def reap(self, now_ns: int) -> None:
        """Take a few entries of ended connections out of the tables, if it is time to."""
        self.sweep.look(now_ns)

    # -- events, counters ----------------------------------------------------------------

    def subscribe(self, callback: Callable[[PlaneEvent], None]) -> None:
        """Deliver events on the running loop."""
        if not self._callbacks:
            self._ring = Ring(self._code.maps["colo_ring"], self._on_event)
            asyncio.get_running_loop().add_reader(self._ring.fd, self._ring.consume)
        self._callbacks.append(callback)

    def _on_event(self, record: bytes) -> None:
        # Called from inside C, where an exception would be lost.
        if len(record) < ctypes.sizeof(abi.Mismatch):
            return
        event = event_of(abi.Mismatch.from_buffer_copy(record))
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback, event)

    def counters(self) -> list[Counter]:
        """Packets by program, verdict and reason, summed over the CPUs."""
        return count_rows(self._stats.all(), self._stats.cpus)

    def mismatches(self) -> list[PlaneEvent]:
        """The last mismatches, oldest first."""
        return mismatch_rows(self._maps["colo_mism"].all())

    def live(self) -> dict[str, int]:
        """The named words the data plane keeps."""
        return {word.name.lower(): self._live(word) for word in LiveWord}

    def _live(self, word: LiveWord) -> int:
        return self._live_words[word].get()

    def _set_live(self, word: LiveWord, value: int) -> None:
        self._maps["colo_live"].set(struct.pack("=I", word), struct.pack("=Q", value))
