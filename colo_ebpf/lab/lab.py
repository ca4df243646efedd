# SPDX-License-Identifier: GPL-2.0-only
"""A lab's life: up, look, heal, down. Each host runs the real daemon with a real configuration."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from colo_ebpf.config.reading import check_paths, load_config
from colo_ebpf.control import link_security
from colo_ebpf.control.admin import control_socket
from colo_ebpf.datapath.bpf.loader import all_pins, pin_directory
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.errors import ControlError, LabError
from colo_ebpf.lab import arbiter as arbiters
from colo_ebpf.lab import mounts, network, processes, topology
from colo_ebpf.lab.guest import within_reach
from colo_ebpf.lab.topology import (
    FAMILIES,
    HOSTS,
    Guest,
    Place,
    arbiter_namespace,
    client_namespace,
)

Say = Callable[[str], None]
PROTECT_S = 180.0
DAEMON = (sys.executable, "-m", "colo_ebpf.cli.main")
_POLL_S = 0.1
_BECOMES_S = 0.005
_PIECE_BYTES = 1 << 20
_CODE = str(Path(__file__).parents[2])  # a daemon runs in /: another checkout may be installed
_LOG_TAIL_BYTES = 2500


class Keeper(Protocol):
    """Keeps the loaded programs of hosts that are gone for hosts that come: the kernel takes
    seconds to verify them."""

    def lend(self, place: Place) -> None:
        """Let the host, which has loaded nothing, have what is kept for its configuration."""

    def take_back(self, place: Place) -> None:
        """All that ran on the host has ended: keep what its BPF file system has."""


class Lab:
    """One lab by its name; `vm`: more than one VM may run on its hosts, each as a `Lab`."""

    keeper: ClassVar[Keeper | None] = None  # of all labs of this process
    timing: ClassVar[Mapping[str, int]] = {}  # of their configurations; else the defaults

    def __init__(
        self, name: str, say: Say = lambda text: None, vm: int = 0, family: str = ""
    ) -> None:
        """`family`: of the addresses between the hosts; "": as the lab has them, or IPv4."""
        self.name, self.say, self.vm = name, say, vm
        self.family = family or self._family_of_hosts()
        self.places = {host: Place(name, host, vm, self.family) for host in HOSTS}
        self.environment: dict[str, dict[str, str]] = {}  # of the daemon on a host, beside ours

    def _family_of_hosts(self) -> str:
        asked = topology.state_file(self.name)
        found = json.loads(asked.read_text()) if asked.exists() else {}
        return str(found.get("family", FAMILIES[0]))

    # -- up ------------------------------------------------------------------------------

    def up(self, guest: Guest, arbiter: str = "file", security: str = "") -> None:
        """Build, start both daemons, wait until the pair is protected. `security`: of the link, as
        `build` has it."""
        if self.is_up():
            raise LabError(f"lab {self.name} is up already: `colo-ebpf lab down` first")
        if self.exists():
            self.say("cleaning what an earlier lab left")
            self.down()
        try:
            self.build(guest, arbiter, security)
            for place in self.places.values():
                self.start_daemon(place)
            self.wait_protected()
            topology.up_mark(self.name).touch()
        except BaseException:
            self.down()
            raise

    def build(self, guest: Guest, arbiter: str = "file", security: str = "") -> None:
        """Everything but the daemons. The first VM brings the hosts with it. `security`: of the
        link; "": what the kernel can do."""
        self.say("building namespaces, links and images")
        if not self.vm:
            self._build_hosts()
        guest = within_reach(guest, topology.directory(self.name) / "boot")
        security = security or self._link_security()
        for place in self.places.values():
            place.run_dir.parent.mkdir(parents=True, exist_ok=True)
            text = topology.config_text(place, guest, arbiter, security, self.timing)
            place.config.write_text(text)
            self._image(place, guest)
            check_paths(load_config(place.config), place.config)
        if arbiter == "etcd" and not self.vm:
            network.add_arbiter(self.name)
            arbiters.start(self.name)
        arbiters.init(self.places[topology.first_host(self.vm)])
        asked = {"guest_address": guest.address, "arbiter": arbiter, "family": self.family}
        topology.state_file(self.name, self.vm).write_text(json.dumps(asked))

    def _link_security(self) -> str:
        """The link of a lab is sealed wherever the kernel can do it."""
        try:
            link_security.best("auto")
        except ControlError as e:
            self.say(f"the link is NOT sealed: {e}")
            return "none"
        return "auto"

    def _build_hosts(self) -> None:
        mounts.mount_memory(topology.directory(self.name))
        network.build(self.name, self.family)
        key = topology.key_file(self.name)
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32) + "\n")
        for place in self.places.values():
            place.bpffs.parent.mkdir(exist_ok=True)
            mounts.mount_bpf(place.bpffs)

    def _image(self, place: Place, guest: Guest) -> None:
        if guest.luns:
            place.disk.symlink_to(guest.luns[HOSTS.index(place.host)])
            if place.host == HOSTS[0]:
                _fill(place.disk, guest)
            return
        if guest.shared_disk:
            place.fence.write_text(topology.fence_script(place))
            place.fence.chmod(0o700)
            place.disk.symlink_to(place.shared_disk)
            if place.shared_disk.exists():
                return
        place.disk.touch(mode=0o600)
        if guest.disk:
            shutil.copyfile(guest.disk, place.disk)
            return
        with place.disk.open("wb") as file:
            file.truncate(guest.disk_bytes)

    def start_daemon(
        self, place: Place, command: Sequence[str] = DAEMON
    ) -> subprocess.Popen[bytes]:
        """As the systemd unit does, in the host's network namespace; with the code of this lab.

        `command`: what takes the words `run --config FILE`. Back when the daemon is seen in its
        namespace, or has ended.
        """
        if self.keeper and not self.vm and not all_pins(place.bpffs).exists():
            self.keeper.lend(place)
        with place.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{place.namespace}"),
                    *(*command, "run", "--config", str(place.config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                cwd="/",
                env={**os.environ, "PYTHONPATH": _CODE, **self.environment.get(place.host, {})},
            )
        while process.poll() is None and process.pid not in daemons_of(place):
            time.sleep(_BECOMES_S)  # until nsenter is in the namespace, and the daemon
        return process

    # -- look ----------------------------------------------------------------------------

    def exists(self) -> bool:
        """Anything of this name is there."""
        names = {client_namespace(self.name), arbiter_namespace(self.name)}
        names |= {p.namespace for p in self.places.values()}
        return topology.directory(self.name).exists() or bool(names & set(namespaces.names()))

    def is_up(self) -> bool:
        """It was built, and something still runs in it."""
        running = any(processes.in_namespace(p.namespace) for p in self.places.values())
        return topology.up_mark(self.name).exists() and running

    def require_up(self) -> None:
        """LabError unless it is."""
        if not self.exists():
            raise LabError(f"no lab {self.name}: `colo-ebpf lab up` first")

    @property
    def guest_address(self) -> str:
        """Where the client finds the guest."""
        return self._asked("guest_address")

    @property
    def arbiter(self) -> str:
        """`file` or `etcd`."""
        return self._asked("arbiter")

    def _asked(self, what: str) -> str:
        return str(json.loads(topology.state_file(self.name, self.vm).read_text())[what])

    def ask(self, host: str, command: str = "status") -> Any:
        """Of the daemon; None if it does not answer."""
        try:
            return control_socket.ask(control_socket.path_in(self.places[host].run_dir), command)
        except ControlError:
            return None

    def describe(self) -> dict[str, Any]:
        """Namespaces, devices, addresses, pids and sockets."""
        return {
            "lab": self.name,
            "directory": str(topology.directory(self.name)),
            "client": {
                "namespace": client_namespace(self.name),
                "device": topology.CLIENT_BRIDGE,
                "address": topology.CLIENT_ADDRESS,
            },
            "guest_address": self.guest_address,
            "arbiter": self._describe_arbiter(),
            "hosts": {host: self._describe_host(place) for host, place in self.places.items()},
        }

    def _describe_arbiter(self) -> dict[str, Any]:
        if self.arbiter == "file":
            return {"kind": "file", "path": str(topology.arbiter_directory(self.name))}
        namespace = arbiter_namespace(self.name)
        pids = processes.in_namespace(namespace)
        return {
            "kind": "etcd",
            "namespace": namespace,
            "endpoint": topology.arbiter_url(),
            "pid": pids[0] if pids else None,
        }

    def _describe_host(self, place: Place) -> dict[str, Any]:
        status = self.ask(place.host)
        daemons = daemons_of(place)
        vms = processes.pids_of(place.namespace, "vm")
        return {
            "namespace": place.namespace,
            "devices": {
                "tap": topology.TAP,
                "bridge": topology.BRIDGE,
                "uplink": topology.UPLINK,
                "link": topology.LINK,
                "vxlan": topology.LINK_DEVICE,
                "management": topology.MANAGEMENT,
            },
            "link_address": place.link_address,
            "management_address": place.management_address,
            "daemon_pid": daemons[0] if daemons else None,
            "qemu_pid": vms[0] if vms else None,
            "config": str(place.config),
            "log": str(place.log),
            "control_socket": str(control_socket.path_in(place.run_dir)),
            "qmp_socket": str(place.run_dir / "qmp.sock"),
            "pins": str(all_pins(place.bpffs)),
            "disk": str(place.disk),
            "state": status["state"] if status else None,
            "sentence": status["sentence"] if status else None,
            "protected": bool(status and status["protected"]),
        }

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = PROTECT_S) -> None:
        """Until it is true, telling what the daemons say meanwhile; LabError if it is late."""
        deadline, told = time.monotonic() + timeout_s, dict.fromkeys(HOSTS, "")
        while not condition():
            for host in HOSTS:
                self._tell(host, told)
            if time.monotonic() > deadline:
                raise LabError(
                    f"lab {self.name}: {what}: not within {timeout_s:.0f} s{self._tails()}"
                )
            time.sleep(_POLL_S)

    def _tell(self, host: str, told: dict[str, str]) -> None:
        status = self.ask(host)
        if status and status["sentence"] != told[host]:
            told[host] = status["sentence"]
            self.say(f"{host}: {told[host]}")

    def logs(self, most_bytes: int = _LOG_TAIL_BYTES) -> Iterator[tuple[str, str]]:
        """What the daemons, their QEMUs and guests have said last: the file's path, and its end."""
        for place in self.places.values():
            for path in (place.log, place.run_dir / "qemu.log", place.run_dir / "serial.log"):
                if path.exists():
                    yield str(path), path.read_bytes()[-most_bytes:].decode(errors="replace")

    def said(self) -> str:
        """What the daemons say now, and the ends of all logs."""
        answers = {host: self.ask(host) for host in HOSTS}
        words = [f"{host}: {s['sentence'] if s else 'no answer'}" for host, s in answers.items()]
        return "; ".join(words) + self._tails()

    def _tails(self) -> str:
        return "".join(f"\n--- {path}\n{end}" for path, end in self.logs())

    def wait_protected(self, timeout_s: float = PROTECT_S) -> None:
        """Both sides say that the pair is protected."""

        def protected() -> bool:
            for place in self.places.values():
                if not daemons_of(place):
                    raise LabError(f"host {place.host}: the daemon ended{self._tails()}")
            states = [self.ask(host) for host in HOSTS]
            return all(s is not None and s["protected"] for s in states)

        try:
            self.wait(protected, "the pair is not protected", timeout_s)
        except LabError as e:
            said = {host: self.ask(host) for host in HOSTS}
            whys = {host: s["unprotected_why"] if s else "no answer" for host, s in said.items()}
            raise LabError(f"{e}\nnot protected: {whys}") from e

    # -- run, heal, down -----------------------------------------------------------------

    def namespace_of(self, host: str) -> str:
        """Of a, b, client or arbiter."""
        others = {"client": client_namespace, "arbiter": arbiter_namespace}
        return others[host](self.name) if host in others else self.places[host].namespace

    def heal(self) -> None:
        """Continue what hangs, reconnect what is cut, start the daemons that are gone."""
        if self.arbiter == "etcd":
            processes.resume(arbiter_namespace(self.name))
            arbiters.start(self.name)
        for place in self.places.values():
            network.restore(place)
            processes.resume(place.namespace)
            if place.bpffs not in mounts.mounted(place.bpffs):
                mounts.mount_bpf(place.bpffs)
            if not daemons_of(place):
                self.start_daemon(place)

    def power_off(self, place: Place) -> None:
        """Nothing runs on the host any more, and what its kernel had is gone."""
        if self.keeper:
            self.keeper.take_back(place)
        mounts.unmount(place.bpffs)

    def environment_of(self, host: str) -> dict[str, str]:
        """What makes `colo-ebpf` and `bpftool` of a shell on that host find its files."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        place = self.places.get(host)
        if place is None:
            return {"PATH": path}
        pins = pin_directory(place.bpffs, place.name)
        return {"PATH": path, "COLO_EBPF_CONFIG": str(place.config), "COLO_EBPF_PINS": str(pins)}

    def down(self) -> None:
        """End and remove everything of this name, however little is left of it."""
        for host in (*HOSTS, "client", "arbiter"):
            processes.end(self.namespace_of(host))
        for place in self.places.values():
            self.power_off(place)
        network.remove(self.name)
        mounts.remove(topology.directory(self.name), topology.ROOT.parent)


def _fill(disk: Path, guest: Guest) -> None:
    """Write what a guest expects to find; the rest of the disk stays what it is. LabError."""
    try:
        with disk.open("r+b") as file:
            if guest.disk:
                with Path(guest.disk).open("rb") as image:
                    shutil.copyfileobj(image, file, _PIECE_BYTES)
            else:
                for begin in range(0, guest.disk_bytes, _PIECE_BYTES):
                    file.write(bytes(min(_PIECE_BYTES, guest.disk_bytes - begin)))
            file.flush()
            os.fsync(file)
    except OSError as e:
        raise LabError(
            f"disk {disk.resolve()}: cannot be written: {e.strerror}; if it is a LUN, another "
            "initiator may have reserved it"
        ) from e


def daemons_of(place: Place) -> list[int]:
    """Pids of those of one VM."""
    found = processes.pids_of(place.namespace, "daemon")
    return [pid for pid in found if str(place.config) in processes.command_of(pid).split()]


def commands(lab: Lab) -> list[str]:
    """How to look at it with bpftool."""
    place = lab.places["a"]
    pins = pin_directory(place.bpffs, place.name)
    return [
        f"bpftool link show pinned {pins}/links/nic0_out",
        f"bpftool link show pinned {pins}/links/nic0_in",
        f"bpftool link show pinned {pins}/links/link",
        f"bpftool map dump pinned {pins}/colo_turn",
        f"bpftool map dump pinned {pins}/colo_stats",
        f"colo-ebpf status --config {place.config}",
    ]
