# SPDX-License-Identifier: GPL-2.0-only
"""The systemd unit: its capabilities are enough for a protected pair, and it is notified."""

from __future__ import annotations

import configparser
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from colo_ebpf.control.host.capabilities import Capability
from colo_ebpf.lab import processes
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import DAEMON, Lab
from colo_ebpf.lab.topology import Place
from tests.capabilities import ROOT, require
from tests.lab import clean

UNIT = ROOT / "packaging" / "colo-ebpf.service"


def _section(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser[name]


def _service() -> configparser.SectionProxy:
    return _section("Service")


class UnitLab(Lab):
    """A lab whose daemons have what the unit gives them, and no more."""

    keeper = None  # they load and verify

    def start_daemon(
        self, place: Place, command: Sequence[str] = DAEMON
    ) -> subprocess.Popen[bytes]:
        """As systemd would."""
        names = _service()["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
        bounds = f"--bounding-set={','.join(['-all', *names])}"
        self.environment[place.host] = {
            "NOTIFY_SOCKET": _notify(place),
            "WATCHDOG_USEC": "5000000",
        }
        return super().start_daemon(place, ("setpriv", "--no-new-privs", bounds, "--", *command))


def _notify(place: Place) -> str:
    return str(place.directory / "notify")


def _capabilities(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (permitted,) = [line.split()[1] for line in lines if line.startswith("CapPrm")]
    return int(permitted, 16)


def test_the_units_capabilities_suffice_and_systemd_is_kept_informed() -> None:
    require("root", "bpf", "qemu", "guest")
    lab = UnitLab("colotunit")
    clean(lab)
    try:
        lab.build(choose(Wanted()))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(_notify(lab.places["a"]))
            s.settimeout(30)
            for place in lab.places.values():
                lab.start_daemon(place)
            lab.wait_protected()
            said = b""
            while b"READY=1" not in said or b"WATCHDOG=1" not in said:
                said += s.recv(4096) + b"\n"
        kept = {"daemon": sum(1 << one for one in Capability), "vm": 0}
        for what, capabilities in kept.items():
            (pid,) = processes.pids_of(lab.places["a"].namespace, what)
            assert _capabilities(pid) == capabilities, what
        assert "no real-time priority" not in lab.places["a"].log.read_text()
    finally:
        lab.down()


def test_the_unit_for_one_of_several_vms_is_the_same_but_for_its_file() -> None:
    one = UNIT.read_text()
    several = UNIT.with_name("colo-ebpf@.service").read_text()
    one = one.replace("Protect a virtual machine", "Protect the virtual machine %i")
    assert several == one.replace("/colo-ebpf/config.toml", "/colo-ebpf/vms/%i.toml")


def test_the_unit_never_gives_up() -> None:
    """What the daemon needs may come late: storage that is mounted after the boot, an arbiter."""
    assert _section("Unit")["StartLimitIntervalSec"] == "0"
    assert _service()["Restart"] == "always"


def test_the_unit_lets_the_vm_outlive_the_daemon() -> None:
    service = _service()
    assert service["Type"] == "notify"
    assert service["KillMode"] == "process"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["WatchdogSec"]
