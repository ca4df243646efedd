# SPDX-License-Identifier: GPL-2.0-only
"""Two real Linux TCP stacks as PVM and SVM, without QEMU: namespaces that run the same servers.

The hosts, their bridges, the link and the data planes are the shipped ones; the control plane is
the test. Both VMs start equal, nothing can be checkpointed: what differs stays withheld.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from colo_ebpf.datapath.bpf.loader import Sizes
from colo_ebpf.datapath.net import namespaces, netdev, ownership
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.lab import network
from colo_ebpf.lab.bed import CACHE
from colo_ebpf.lab.topology import (
    BRIDGE,
    CLIENT_BRIDGE,
    HOSTS,
    LINK,
    MAC,
    UPLINK,
    Place,
    client_namespace,
)
from colo_ebpf.model import Mode, Pairing, Phase, VmRole
from tests.lab import planes
from tests.live.noise import Noise
from tests.netns import let_be_sent_whole

T = TypeVar("T")
ADDRESS = "192.168.77.10"
_CLIENT_BRIDGE_ADDRESS = "192.168.77.1"
_VNI = 9
_VM = "live"
_SIZES = Sizes(flows=16384, hold_slots=8192, dgram_buckets=256)
_NGINX = """
daemon off; worker_processes 1; pid {run}/pid; error_log {run}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {run}; proxy_temp_path {run}; fastcgi_temp_path {run};
  uwsgi_temp_path {run}; scgi_temp_path {run};
  server {{ listen 80 backlog=8192; root {root}; }}
}}
"""


class LivePair:
    """`with LivePair() as pair`; paired, and nothing held."""

    def __init__(self) -> None:
        self._lab = f"colotest-live-{os.getpid()}"
        self._stack = contextlib.ExitStack()
        self.places = {host: Place(self._lab, host) for host in HOSTS}
        self.planes: dict[str, DataPlane] = {}
        self.roots: dict[str, Path] = {}
        self.noises: list[Noise] = []

    def __enter__(self) -> LivePair:
        # A tap is one queue: what a VM sends arrives in order. A namespace that moves from CPU to
        # CPU does not give that; on one CPU it does. Threads and servers inherit it.
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cpus)})
        self._stack.callback(os.sched_setaffinity, 0, cpus)
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="colo-test-live-"))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._stack.callback(network.remove, self._lab)
        network.build(self._lab)
        for host in HOSTS:
            self._add_vm(host)
        for host, role in zip(HOSTS, (VmRole.PRIMARY, VmRole.SECONDARY), strict=True):
            self.planes[host] = self._in(host, lambda h=host, r=role: self._plane(h, r))  # type: ignore[misc]
        self._in("a", lambda: asyncio.run(self.planes["a"].join_bridge()))
        self._add_noise()
        self._pair()

    def _vm(self, host: str) -> str:
        return f"{self._lab}-vm-{host}"

    def _add_vm(self, host: str) -> None:
        vm = self._vm(host)
        namespaces.create(vm)
        self._stack.callback(namespaces.remove, vm)
        namespaces.create_veth("tap0", "eth0", self.places[host].namespace, vm, 1500)
        self._in(host, lambda: ownership.mark("tap0", _VM))  # it stands for the tap
        for command in (
            f"link set eth0 address {MAC}",
            "link set lo up",
            f"addr add {ADDRESS}/24 dev eth0",
        ):
            subprocess.run(["ip", "-n", vm, *command.split()], check=True)
        client = namespaces.run_in(client_namespace(self._lab), _mac_of_lan)
        neighbour = f"neigh add {_CLIENT_BRIDGE_ADDRESS} lladdr {client} dev eth0"
        subprocess.run(["ip", "-n", vm, *neighbour.split()], check=True)

    def _plane(self, host: str, role: VmRole) -> DataPlane:
        bpffs = self.directory / f"bpf-{host}"
        bpffs.mkdir()
        subprocess.run(["mount", "-t", "bpf", "bpf", str(bpffs)], check=True)
        self._stack.callback(subprocess.run, ["umount", "-l", str(bpffs)], check=True)
        planes.lend_to(bpffs, _VM, _SIZES)
        self._stack.callback(planes.keep, bpffs)
        place = self.places[host]
        plane = DataPlane.open(
            PlaneSpec(
                vm=_VM,
                bpffs=bpffs,
                cache=CACHE,
                nics=(PlaneNic("tap0", BRIDGE, 1500),),
                link_device="vx0",
                underlay=LINK,
                vxlan_port=4789,
                link_address=place.link_address,
                link_timeout_ms=3_600_000,
                notes_last_ms=3_600_000,
                heartbeat_ms=30,
                sizes=_SIZES,
            )
        )

        async def attach() -> None:
            await plane.prepare()
            await plane.take_role(role)

        asyncio.run(attach())
        self._stack.callback(plane.close)
        return plane

    def _add_noise(self) -> None:
        lan, host = client_namespace(self._lab), self.places["a"].namespace

        def client_side() -> None:
            for number, (device, ingress) in enumerate(
                (("a0", True), ("a0", False), ("b0", True), ("b0", False))
            ):
                self.noises.append(Noise(lan, device, ingress, number))

        def link() -> None:
            self.noises += [Noise(host, LINK, True, 8), Noise(host, LINK, False, 9)]

        namespaces.run_in(lan, client_side)
        self._in("a", link)
        for one in self.noises:
            self._stack.callback(one.close)

    def _pair(self) -> None:
        modes = {"a": Mode.PRIMARY, "b": Mode.SECONDARY}
        for host, plane in self.planes.items():
            other = "b" if host == "a" else "a"
            plane.set_pairing(Pairing(_VNI, self.places[other].link_address))
            plane.set_turn(1, Phase.OPEN)
            plane.set_mode(modes[host])
        for host, plane in self.planes.items():
            self._in(host, plane.beacon)

    def _in(self, host: str, function: Callable[[], T]) -> T:
        return namespaces.run_in(self.places[host].namespace, function)

    # -- what a test does ------------------------------------------------------------------

    def serve(self, host: str, content: dict[str, bytes]) -> None:
        """nginx on port 80 with these files; the upload sink on port 81, by MPTCP on port 82."""
        run = self.directory / f"run-{host}"
        root = run / "root"
        root.mkdir(parents=True)
        for name, data in content.items():
            (root / name).write_bytes(data)
        self.directory.chmod(0o755)
        config = run / "nginx.conf"
        config.write_text(_NGINX.format(run=run, root=root))
        sink = Path(__file__).with_name("sink.py")
        sinks = [["/usr/bin/python3", str(sink), *words] for words in (["81"], ["82", "mptcp"])]
        for number, argv in enumerate((["nginx", "-c", str(config)], *sinks)):
            log = (run / f"{number}.log").open("wb")
            process = subprocess.Popen(
                ["nsenter", f"--net=/var/run/netns/{self._vm(host)}", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            self._stack.callback(process.wait)
            self._stack.callback(process.terminate)
            self._stack.callback(log.close)

    def noise(self, lose: float, twice: float, late: float) -> None:
        """On the clients' wires, in both directions."""
        for one in self.noises[:4]:
            one.set(lose, twice, late)

    def link_noise(self, lose: float, twice: float, late: float) -> None:
        """On the link, in both directions."""
        for one in self.noises[4:]:
            one.set(lose, twice, late)

    def let_clients_send_whole(self, most_bytes: int) -> None:
        """Frames of so many bytes leave the clients' devices uncut (BIG TCP)."""

        def client_side() -> None:
            for device in ("a0", "b0", CLIENT_BRIDGE):  # a bridge may no more than its ports
                let_be_sent_whole(device, most_bytes)

        namespaces.run_in(client_namespace(self._lab), client_side)

    def as_client(self, function: Callable[[], T]) -> T:
        """Run something where the clients are."""
        return namespaces.run_in(client_namespace(self._lab), function)

    def kill_primary(self) -> None:
        """Its host is gone at once; the secondary takes over as the control plane would."""
        self._in("a", lambda: [netdev.set_down(device) for device in (UPLINK, LINK)])
        plane = self.planes["b"]
        plane.keep_offsets(1)
        plane.set_turn(0, Phase.OPEN)
        plane.set_mode(Mode.SOLO)
        self._in("b", lambda: asyncio.run(plane.join_bridge()))

    def kill_secondary(self) -> None:
        """Its host is gone; the primary goes on alone."""
        self._in("b", lambda: [netdev.set_down(device) for device in (UPLINK, LINK)])
        self.planes["a"].set_mode(Mode.SOLO)
        self._in("a", self.planes["a"].flush)


def _mac_of_lan() -> str:
    """SIOCGIFHWADDR: /sys shows another namespace's devices."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        raw = fcntl.ioctl(s.fileno(), 0x8927, struct.pack("256s", CLIENT_BRIDGE.encode()))
    return raw[18:24].hex(":")
