# SPDX-License-Identifier: GPL-2.0-only
"""What the data plane has on this host's devices: the devices that are its own, its programs on
their hooks, the taps' places in their bridges. Other programs of a host, and people, change such
things; so it can be looked at, and be put back.

All functions act in the calling thread's network namespace, and block: use a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.datapath.bpf import syscalls
from colo_ebpf.datapath.net import (
    bridges,
    delay_line,
    netdev,
    ownership,
    tc,
    tcx,
    tuntap,
    vxlan,
    xfrm,
)
from colo_ebpf.datapath.net.hooks import By, Filter, Hook, Order
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.errors import AttachError
from colo_ebpf.model import Lack, VmRole

_log = logging.getLogger(__name__)
_CHECKED = {VmRole.PRIMARY: "colo_cmp_pvm", VmRole.SECONDARY: "colo_mir_svm"}
_LINK = {VmRole.PRIMARY: "colo_cmp_svm", VmRole.SECONDARY: "colo_mir_link"}


def filters_of(spec: PlaneSpec, role: VmRole) -> Iterator[Filter]:
    """All of a role, in the order in which they are to be attached."""
    for number, tap in enumerate(nic.tap for nic in spec.nics):
        pin = f"nic{number}"
        yield Filter(tap, f"{pin}_last_out", Hook.INGRESS, "colo_last_out", Order.AFTER)
        yield Filter(tap, f"{pin}_out", Hook.INGRESS, _CHECKED[role])
        yield Filter(tap, f"{pin}_last_in", Hook.EGRESS, "colo_last_in", Order.BEFORE)
        yield Filter(tap, f"{pin}_in", Hook.EGRESS, "colo_mir_cli")
    yield Filter(spec.link_device, "link", Hook.INGRESS, _LINK[role])


def _chosen(wanted: By | None) -> By:
    if wanted is By.CLSACT or (wanted is None and not tcx.available()):
        return By.CLSACT
    if not tcx.available():
        raise AttachError(
            'datapath.hooks = "tcx": this kernel has no TCX hooks (they came with Linux 6.6): '
            'set it to "auto"'
        )
    return By.TCX


def _is_whole(ifname: str) -> bool:
    return netdev.exists(ifname) and netdev.is_up(ifname)


@dataclass(frozen=True, slots=True)
class _Attached:
    filter: Filter
    fd: int
    number: int  # the kernel's id of the program


@dataclass(frozen=True, slots=True)
class Indices:
    """Of the devices, as the programs are told them; `line` 0: there is no delay line."""

    taps: tuple[int, ...]
    link: int
    line: int


class Wiring:
    """Of one VM. `programs`: their descriptors by name."""

    def __init__(self, spec: PlaneSpec, pins: Path, programs: dict[str, int]) -> None:
        self._spec, self._programs = spec, programs
        self.by = _chosen(spec.by)
        self._links = tcx.Links(pins)
        self._attached: dict[str, _Attached] = {}
        self._has_line = False
        self.on_bridge = False  # are the taps to be?

    def close(self) -> None:
        """What is attached stays."""
        self._links.close()

    # -- to make it ------------------------------------------------------------------------

    def make_devices(self) -> Indices:
        """Taps, link device, delay line: those that are missing. Raises AttachError."""
        spec = self._spec
        if not spec.tunnelled:  # whoever has made the tunnel has looked below it
            vxlan.check_link_mtu(spec.underlay, spec.mtu, spec.link_mtu)
        self._require_bridges()
        if spec.sealed:
            xfrm.require(spec.sealed)  # before anything can be sent
        taps = [nic.tap for nic in spec.nics]
        ownership.require(spec.vm, taps, spec.link_device, spec.vxlan_port)
        queues = {nic.tap: nic.queues for nic in spec.nics}
        ownership.drop_outdated(spec.vm, queues, spec.link_device, spec.vxlan_port)
        for nic in spec.nics:
            tuntap.create_tap(nic.tap, nic.mtu, nic.queues)
            ownership.mark(nic.tap, spec.vm)
        self._make_link_device()
        self.make_delay_line()
        return self._devices()

    def _require_bridges(self) -> None:
        """A tap that could join none would be found out at the takeover. A VM that runs goes on."""
        for nic in self._spec.nics:
            fault = bridges.not_a_bridge(nic.bridge)
            fault = fault or bridges.vlan_fault(nic.bridge, nic.vlan, nic.trunk)
            if fault and not tuntap.in_use(nic.tap):
                raise AttachError(fault)

    def warn(self) -> None:
        """Of what a takeover would suffer from; the log has it."""
        for nic in self._spec.nics:
            if fault := bridges.fault(nic.bridge, nic.vlan):
                _log.warning("%s", fault)

    def _make_link_device(self) -> None:
        spec = self._spec
        vxlan.create(spec.link_device, spec.vxlan_port, spec.mtu)
        ownership.mark(spec.link_device, spec.vm)

    def _devices(self) -> Indices:
        spec = self._spec
        taps = tuple(netdev.index_if_there(nic.tap) for nic in spec.nics)
        first, _ = delay_line.names(spec.link_device)
        line = netdev.index_if_there(first) if self._has_line else 0
        return Indices(taps, netdev.index_of(spec.link_device), line)

    def make_delay_line(self) -> None:
        """Where long frames of the PVM wait. A kernel without HTB has none: they are copied."""
        first, last = delay_line.names(self._spec.link_device)
        try:
            delay_line.create(first, last, self._spec.mtu, self._spec.heartbeat_ms)
        except AttachError as e:
            _log.warning(
                "%s: long frames are copied and cut at once, bulk is slower; the daemon beats for"
                " the plane, and takes more of a processor",
                e,
            )
            self._has_line = False
            return
        self._has_line = True
        for one in (first, last):
            ownership.mark(one, self._spec.vm)
        self._attach_ours(Filter(last, "line", Hook.INGRESS, "colo_park"))

    def take_role(self, role: VmRole) -> None:
        """Attach the primary's or the secondary's programs, each replaced in one step."""
        for one in filters_of(self._spec, role):
            self._attach_ours(one)
        self._only_one_way()

    def _attach_ours(self, one: Filter) -> None:
        self.attach(one, self._programs[one.program])

    def attach(self, one: Filter, fd: int) -> None:
        """Put this program in its place."""
        if self.by is By.TCX:
            self._links.attach(one, fd)
        else:
            tc.attach(one, fd)
        self._attached[one.pin] = _Attached(one, fd, syscalls.program_info(fd).number)

    def _only_one_way(self) -> None:
        """An earlier daemon may have attached them the other way: a frame would pass twice."""
        if self.by is By.CLSACT:
            self._links.remove()
            return
        for device in {one.filter.device for one in self._attached.values()}:
            if tc.attached(device):
                tc.detach(device)

    def join_bridge(self) -> None:
        """Put the taps on their bridges."""
        self.on_bridge = True
        for nic in self._spec.nics:
            bridges.join(nic.tap, nic.bridge, nic.vlan, nic.trunk)

    def leave_bridge(self) -> None:
        """Take the taps off."""
        self.on_bridge = False
        for nic in self._spec.nics:
            if netdev.exists(nic.tap):
                bridges.leave(nic.tap)

    # -- to look at it ---------------------------------------------------------------------

    def indices(self) -> set[int]:
        """Of the devices that there are, bridges too: what concerns them concerns this VM."""
        spec = self._spec
        names = [name for nic in spec.nics for name in (nic.tap, nic.bridge)]
        names += [spec.link_device, *delay_line.names(spec.link_device)]
        names += [spec.underlay] if spec.tunnelled else []
        return {netdev.index_if_there(name) for name in names} - {0}

    def runs(self) -> bool:
        """Is every program on its hook? Cheap; of clsact filters only netlink tells (True)."""
        attached = self._attached.values()
        return self.by is By.CLSACT or all(
            self._links.runs(one.filter, one.number) for one in attached
        )

    def lacks(self) -> list[Lack]:
        """What is not as it should be, the worst first. Raises AttachError."""
        return [
            *self._lacking_policies(),
            *self._lacking_devices(),
            *self._lacking_programs(),
            *self._lacking_ports(),
        ]

    def _lacking_policies(self) -> Iterator[Lack]:
        """Without them frames would leave, and be taken, unsealed."""
        lacking = xfrm.lacking(self._spec.sealed) if self._spec.sealed else set()
        if lacking:
            yield Lack(f"{len(lacking)} IPsec policies of the link were removed")

    def _lacking_devices(self) -> Iterator[Lack]:
        spec = self._spec
        for nic in spec.nics:
            if not netdev.exists(nic.tap):
                text = f"the tap {nic.tap} was removed: its VM has lost that network card for good"
                yield Lack(text, hopeless=True)
            elif not netdev.is_up(nic.tap):
                yield Lack(f"the tap {nic.tap} is down")
        line = delay_line.names(spec.link_device) if self._has_line else ()
        for what, name in (("link device", spec.link_device), *(("delay line", n) for n in line)):
            if not netdev.exists(name):
                yield Lack(f"the {what} {name} was removed")
            elif not netdev.is_up(name):
                yield Lack(f"the {what} {name} is down")
        if line and netdev.exists(line[0]) and not delay_line.is_htb(line[0]):
            yield Lack(f"the queue of the delay line {line[0]} was removed")

    def _lacking_programs(self) -> Iterator[Lack]:
        there: dict[str, dict[str, list[str]]] = {}
        for attached in self._attached.values():
            one = attached.filter
            if not netdev.exists(one.device):
                continue
            if self.by is By.TCX:
                yield from self._lacking_link(one, attached.number)
                continue
            if one.device not in there:
                there[one.device] = tc.attached(one.device)
            if one.program not in there[one.device].get(one.hook.value, []):
                yield Lack(f"{one}: {one.program} was taken off")

    def _lacking_link(self, one: Filter, number: int) -> Iterator[Lack]:
        if not self._links.runs(one, number):
            yield Lack(f"{one}: {one.program} was taken off")
        elif other := self._links.precedes(one, number):
            yield Lack(
                f"{one}: the BPF program {other} of somebody else runs before {one.program}, and "
                f"may pass what that would withhold: `bpftool prog show id {other}` tells whose"
            )
        elif not self._links.pinned(one):
            yield Lack(f"the pin of the link {one.pin} was removed")

    def _lacking_ports(self) -> Iterator[Lack]:
        for nic in self._spec.nics:
            if not netdev.exists(nic.bridge):
                yield Lack(f"there is no bridge {nic.bridge}: the VM's clients are behind it")
            elif fault := bridges.not_a_bridge(nic.bridge):
                yield Lack(fault)
            elif not netdev.is_up(nic.bridge):
                yield Lack(f"the bridge {nic.bridge} is down: the VM's clients are behind it")
            elif self.on_bridge and not self._is_port(nic):
                yield Lack(f"the tap {nic.tap} is not on the bridge {nic.bridge}")

    def _is_port(self, nic: PlaneNic) -> bool:
        """Of a tap that is gone something else is said."""
        there = netdev.exists(nic.tap)
        return not there or netdev.master_of(nic.tap) == netdev.index_of(nic.bridge)

    # -- to put it back ----------------------------------------------------------------------

    def restore(self) -> Indices:
        """What is lacking and nothing else, for each moment counts: a link that is silent for
        `peer-timeout-ms` is cut. The programs come first. Raises AttachError.

        A tap is not made again: the VM has the old one open, not the new one.
        """
        self._attach_lacking()
        if self._spec.sealed:
            xfrm.require(self._spec.sealed)
        for nic in self._spec.nics:
            if netdev.exists(nic.tap) and not netdev.is_up(nic.tap):
                netdev.set_up(nic.tap)
        if not _is_whole(self._spec.link_device):
            self._make_link_device()
        if self._has_line and not self._line_is_whole():
            self.make_delay_line()
        self._attach_lacking()
        self._rejoin()
        return self._devices()

    def _line_is_whole(self) -> bool:
        first, last = delay_line.names(self._spec.link_device)
        return _is_whole(first) and _is_whole(last) and delay_line.is_htb(first)

    def _attach_lacking(self) -> None:
        for one in list(self._attached.values()):
            if netdev.exists(one.filter.device) and not self._is_attached(one):
                self.attach(one.filter, one.fd)

    def _is_attached(self, one: _Attached) -> bool:
        """To ask for a clsact filter takes as long as to attach it."""
        if self.by is By.CLSACT:
            return False
        return self._links.runs(one.filter, one.number) and self._links.pinned(one.filter)

    def _rejoin(self) -> None:
        for nic in self._spec.nics:
            if self.on_bridge and netdev.exists(nic.tap) and netdev.exists(nic.bridge):
                bridges.join(nic.tap, nic.bridge, nic.vlan, nic.trunk)
