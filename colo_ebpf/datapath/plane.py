# SPDX-License-Identifier: GPL-2.0-only
"""The data plane of one VM on this host: port `Plane` over pinned maps and attached programs."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.datapath import abi, generations, loader, netdev, reap, sets, tc
from colo_ebpf.datapath.abi import LiveWord
from colo_ebpf.datapath.decode import (
    count_index,
    count_rows,
    event_of,
    late_counts,
    mismatch_rows,
)
from colo_ebpf.datapath.holding import HeldSlots
from colo_ebpf.datapath.image import Source
from colo_ebpf.datapath.lasting import LastingOffsets
from colo_ebpf.datapath.ring import Ring
from colo_ebpf.datapath.sysbpf import ArrayWord, RawMap, Runner, obj_get, test_run
from colo_ebpf.errors import AttachError
from colo_ebpf.model import (
    Counter,
    FlushReport,
    HeldReport,
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

_STATE = ("colo_conf", "colo_turn", "colo_live", "colo_hold", "colo_mism")
_STATS, _LATE = "colo_stats", "colo_late"
_TABLES = ("colo_offs", "colo_last", "colo_flows", "colo_dgrams")
_FLUSH_ROUNDS = 256  # times round the ring; a frame may wait for the one before it
_FLUSH_IDLE = 8  # rounds without a frame: another CPU holds on to what is left
_AGE_PLACES = 256  # COLO_AGE_MAX: places one run looks at
_AGE_BUSY = 1 / 16  # of the flow table's entries: below, a run finds next to nothing, and rests
AGE_REST_NS = 500_000_000
_FAREWELLS = 3  # copies: the link may lose some
_BEATS_ALONE = 5  # heartbeats the plane goes on by itself: a daemon may be kept waiting so long
_BEAT_LOST = 2  # heartbeats without a beacon: its place in the delay line is empty
_AGES_MOST = 512  # frames whose age is looked at
_HIGH_MARK = 3 / 4  # of the hold store: from here on a checkpoint is due


@dataclass(frozen=True, slots=True)
class PlaneNic:
    """One network card of the VM: its tap, and the bridge of its clients."""

    tap: str
    bridge: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """What the data plane of one VM is made of."""

    vm: str
    bpffs: Path
    cache: Path
    nics: tuple[PlaneNic, ...]
    link_device: str
    underlay: str
    vxlan_port: int
    link_address: str
    link_timeout_ms: int
    notes_last_ms: int  # of datagrams that only the SVM has sent
    heartbeat_ms: int
    sizes: loader.Sizes

    @property
    def mtu(self) -> int:
        """The largest of the NICs': what the link has to carry."""
        return max(nic.mtu for nic in self.nics)


def _address(text: str) -> int:
    """IPv4 address as the programs compare it: network order read as a host integer."""
    return int(struct.unpack("=I", socket.inet_aton(text))[0])


def _own_frame(ethertype: int) -> bytes:
    """The head of a frame that is no VM's."""
    return b"\xff" * 6 + b"\x02" + b"\0" * 5 + struct.pack("!H", ethertype)


def _make(sources: Sequence[Source], pins: Path, cache: Path) -> sets.Code:
    """Programs that the next daemon can adopt."""
    found = loader.images(sources, cache)
    start = time.monotonic()
    modules = loader.load(found, pins)
    code = sets.publish(pins, sets.name_of(sources), modules)
    _log.info("verified %d programs in %.1f s", len(code.programs), time.monotonic() - start)
    return code


class DataPlane:
    """Programs and maps of one VM. Map accesses are synchronous; devices need a thread."""

    def __init__(self, spec: PlaneSpec, code: sets.Code) -> None:
        self._spec = spec
        self._code = code
        pins = loader.pin_directory(spec.bpffs, spec.vm)
        self._maps = {name: RawMap(obj_get(str(pins / name))) for name in _STATE}
        self._cell = ArrayWord(self._maps["colo_turn"].fd, 0)
        live = self._maps["colo_live"].fd
        self._live_words = {word: ArrayWord(live, word) for word in LiveWord}
        cpus = os.sysconf("SC_NPROCESSORS_CONF")
        self._stats = RawMap(obj_get(str(pins / _STATS)), ctypes.sizeof(abi.Count) * cpus)
        self._late = RawMap(obj_get(str(pins / _LATE)), 8 * cpus)
        self._tables = [RawMap(obj_get(str(pins / name))) for name in _TABLES]
        self._of_a_vm = (*self._tables, self._maps["colo_hold"])
        offsets, lasting = self._tables[:2]
        self._aged_to = self._age_due_ns = self._reap_due_ns = 0
        self._lasting = LastingOffsets(offsets, lasting)
        self._reap_lasting = reap.Reaper(lasting)
        self._held = HeldSlots(self._maps["colo_hold"].fd)
        self._beacon_run = Runner(self.programs["colo_beacon"], self._beacon_frame())
        heartbeat_ns = spec.heartbeat_ms * 1_000_000
        self._alone_ns, self._lost_ns = _BEATS_ALONE * heartbeat_ns, _BEAT_LOST * heartbeat_ns
        self._age_run = Runner(self.programs["colo_age"], bytes(64))
        self._conf = self._first_conf()
        self._callbacks: list[Callable[[PlaneEvent], None]] = []
        self._ring: Ring | None = None

    @classmethod
    def open(cls, spec: PlaneSpec) -> DataPlane:
        """Adopt, or compile, load and bind. Blocks, for seconds if there is nothing to adopt and
        nothing kept; raises LoadError or DatapathError."""
        loader.require_bpffs(spec.bpffs)
        taps = [nic.tap for nic in spec.nics]
        generations.make_way(spec.bpffs, spec.vm, taps, spec.link_device)
        pins = loader.pin_directory(spec.bpffs, spec.vm)
        pins.mkdir(parents=True, exist_ok=True)
        sources = loader.shipped(spec.sizes)
        code = sets.adopt(pins, sources, (*_STATE, _STATS, _LATE, *_TABLES))
        if code is not None:
            _log.info("adopted %d programs that are loaded", len(code.programs))
        else:
            code = _make(sources, pins, spec.cache)
            if not any(map(netdev.in_use, taps)):
                sets.clear_others(pins, code.name)
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
        conf.local_ip = _address(self._spec.link_address)
        conf.link_timeout_ns = self._spec.link_timeout_ms * 1_000_000
        conf.dgram_timeout_ns = self._spec.notes_last_ms * 1_000_000
        return conf

    def _write_conf(self) -> None:
        self._maps["colo_conf"].set(b"\0" * 4, bytes(self._conf))

    @property
    def programs(self) -> dict[str, int]:
        """Descriptors of all programs, by name."""
        return self._code.programs

    def close(self) -> None:
        """Let go of maps and programs: what is attached and pinned goes on without us."""
        self._held.close()
        for one in (*self._maps.values(), self._stats, self._late, *self._tables):
            os.close(one.fd)
        if self._ring is not None:
            self._ring.close()
        self._code.close()

    # -- devices and filters -------------------------------------------------------------

    async def prepare(self) -> None:
        """Make tap and link device, tell the programs their indices. Idempotent."""
        spec = self._spec

        def make() -> None:
            netdev.check_link_mtu(spec.underlay, spec.mtu)
            for nic in spec.nics:
                netdev.create_tap(nic.tap, nic.mtu)
            netdev.create_vxlan(spec.link_device, spec.vxlan_port, spec.mtu)
            self._conf.park_ifindex = self._make_delay_line()

        await asyncio.to_thread(make)
        for number, nic in enumerate(spec.nics):
            self._conf.tap_ifindex[number] = netdev.index_of(nic.tap)
        self._conf.link_ifindex = netdev.index_of(spec.link_device)
        self._write_conf()

    def _make_delay_line(self) -> int:
        """Where long frames of the PVM wait; 0: the kernel has no HTB, they are copied."""
        first, last = netdev.delay_line(self._spec.link_device)
        try:
            netdev.create_delay_line(first, last, self._spec.mtu, self._spec.heartbeat_ms)
        except AttachError as e:
            _log.warning(
                "%s: long frames are copied and cut at once, bulk is slower; the daemon beats for"
                " the plane, and takes more of a processor",
                e,
            )
            return 0
        tc.attach(last, tc.INGRESS, "colo_park", self.programs["colo_park"])
        return netdev.index_of(first)

    async def take_role(self, role: VmRole) -> None:
        """Attach the primary's or the secondary's programs, each replaced in one step."""
        spec = self._spec
        out, link = (
            ("colo_cmp_pvm", "colo_cmp_svm")
            if role is VmRole.PRIMARY
            else ("colo_mir_svm", "colo_mir_link")
        )

        def put(device: str, hook: int, program: str, priority: int = tc.PRIORITY) -> None:
            tc.attach(device, hook, program, self.programs[program], priority)

        def attach() -> None:
            for tap in (nic.tap for nic in spec.nics):
                put(tap, tc.INGRESS, "colo_last_out", tc.AFTER)
                put(tap, tc.INGRESS, out)
                put(tap, tc.EGRESS, "colo_last_in", tc.BEFORE)
                put(tap, tc.EGRESS, "colo_mir_cli")
            put(spec.link_device, tc.INGRESS, link)
            sets.clear_others(loader.pin_directory(spec.bpffs, spec.vm), self._code.name)

        await asyncio.to_thread(attach)

    async def join_bridge(self) -> None:
        """Put the VM's taps on the client-side bridges."""
        for nic in self._spec.nics:
            await asyncio.to_thread(netdev.join_bridge, nic.tap, nic.bridge)

    async def leave_bridge(self) -> None:
        """Take the VM's taps off the client-side bridges."""
        for nic in self._spec.nics:
            await asyncio.to_thread(netdev.leave_bridge, nic.tap)

    async def quicken(self, peer_address: str) -> None:
        """`quickack` on the route to the peer."""
        await asyncio.to_thread(netdev.set_quickack, peer_address)

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
        left = self._conf.vni, self._conf.peer_ip
        self._conf.vni = pairing.vni * abi.NICS if pairing else 0
        self._conf.peer_ip = _address(pairing.peer_address) if pairing else 0
        self._set_live(LiveWord.HEARD_NS, 0)
        self._write_conf()
        if left[0] and left[0] != self._conf.vni:
            self._say_farewell(*left)

    def _say_farewell(self, vni: int, peer_ip: int) -> None:
        """The other plane may go on without its daemon: it is to let nothing out any more."""
        call = struct.pack("=II", vni, peer_ip).ljust(46, b"\0")
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
        emitted = left = idle = 0
        for _ in range(_FLUSH_ROUNDS):
            if not self.held_frames():
                return FlushReport(emitted, 0)
            left, before = 0, emitted
            for slot in self._oldest_first():
                frame = struct.pack("=I", slot).ljust(12, b"\0") + b"\x08\x00"
                run = test_run(self.programs["colo_flush"], frame.ljust(64, b"\0"))
                emitted += run.retval & 0xFFFF
                left += run.retval >> 16
            if not left:
                break
            idle = idle + 1 if emitted == before else 0
            if idle == _FLUSH_IDLE:
                break
        return FlushReport(emitted, left)

    def _oldest_first(self) -> list[int]:
        """A slot of each part of the store, where its oldest frames begin; see colo_hold.h."""
        head, slots = self._live(LiveWord.HOLD_HEAD), self._spec.sizes.hold_slots
        ring = [(head + start) % slots for start in range(0, slots, abi.HOLD_PART)]
        return sorted(ring, key=lambda slot: slot < slots - abi.HOLD_PART)  # the last part first

    def repeat(self) -> int:
        """Send what the VM said last as a secondary; see colo_said.h. Returns how many frames."""
        frame = struct.pack("=II", 0, 1).ljust(12, b"\0") + b"\x08\x00"
        run = test_run(self.programs["colo_flush"], frame.ljust(64, b"\0"))
        return run.retval & 0xFFFF

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
        answer_ns, timer_ns = self._held.oldest_ns() if frames else (None, None)
        return Waiting(answer_ns, timer_ns, frames, self.compared_frames())

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
        """How late the SVM was so far; see colo_late.h."""
        return late_counts(self._late.all(), os.sysconf("SC_NPROCESSORS_CONF"))

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
        carries what it has to. See colo_beat.h."""
        if self.beats_alone:
            self._set_live(LiveWord.BEAT_UNTIL_NS, now_ns + self._alone_ns)
            if now_ns - self._live(LiveWord.BEAT_NS) < self._lost_ns:
                return
        self.beacon()

    def beacon(self) -> None:
        """One beacon now."""
        self._beacon_run.run()

    def _beacon_frame(self) -> bytes:
        return _own_frame(abi.BEACON_ETHERTYPE).ljust(self._spec.mtu + netdev.ETHERNET_BYTES, b"\0")

    def link_heard_ns(self) -> int:
        """Boot time of the last frame of the peer's plane; 0: never."""
        return self._live(LiveWord.HEARD_NS)

    def reap(self, now_ns: int) -> None:
        """Take a few entries of ended connections out of the tables, if it is time to."""
        if now_ns < self._reap_due_ns:
            return
        if now_ns >= self._age_due_ns:
            self._age(now_ns)
        lasting = self._reap_lasting
        if now_ns >= lasting.due_ns:
            lasting.step(now_ns, lambda raw: reap.lasting_ended(raw, now_ns))
        self._reap_due_ns = min(self._age_due_ns, lasting.due_ns)

    def _age(self, now_ns: int) -> None:
        """The next places of the flow table; in every beat only if there is much to find."""
        used, flows = self._live(LiveWord.FLOWS), self._spec.sizes.flows
        if used:
            self._age_run.put(struct.pack("=I", self._aged_to))
            self._age_run.run()
            self._aged_to = (self._aged_to + _AGE_PLACES) % (2 * flows)
        if used < flows * _AGE_BUSY:
            self._age_due_ns = now_ns + AGE_REST_NS

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
        return count_rows(self._stats.all(), os.sysconf("SC_NPROCESSORS_CONF"))

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
