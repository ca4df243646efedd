# SPDX-License-Identifier: GPL-2.0-only
"""An operator's way, as the docs go it: two hosts with the packages in `$COLO_DEB`, a VM of
libvirt's and seven others, protected; a host dies under a load; in the end nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control import link_security
from colo_ebpf.errors import ControlError
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.workload import LEDGER, served
from tests.capabilities import ROOT, require
from tests.lab import Entries, power_off
from tests.packages import fresh, middle
from tests.packages.containers import NAMESPACE, Container
from tests.packages.machines import until
from tests.packages.middle import HOSTS

_STEP_S = 300.0
_ENTRIES = 5
_IMAGES = "/var/lib/libvirt/images"
_GUEST = ("vmlinuz", "initramfs.gz", "libtcgdirty.so")
_SYSTEM = ("dbus", "iproute2", "kmod", "procps", "systemd-sysv")
_LIBVIRT = ("libvirt-clients", "libvirt-daemon-system")
_APPEND = "console=ttyS0 no_timer_check mitigations=off random.trust_cpu=on"
_DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{images}/vmlinuz</kernel>
    <initrd>{images}/initramfs.gz</initrd>
    <cmdline>{append} colo.ip={ip}/24</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{images}/{name}.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:{number:02x}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'/>
  </devices>
</domain>
"""
# Beside what `config example --host` has: emulated guests need the library.
_SHARED = """
[vm]
preload = "{images}/libtcgdirty.so"
"""
_PAGE = """
import sys
from urllib.error import HTTPError
from urllib.request import urlopen
try:
    with urlopen("http://127.0.0.1:9949" + sys.argv[1]) as page:
        print(page.status, page.read().decode())
except HTTPError as e:
    print(e.code, e.read().decode())
"""
# What an administrator may find of us. The users stay: lists of access of images name them.
_LEFT = r"""
find / -xdev \( -name '*colo-ebpf*' -o -name '*colo_ebpf*' \) ! -path '/root/*' \
    ! -path /usr/lib/colo-ebpf ! -path '/usr/lib/colo-ebpf/build*'
find /etc/systemd /run/systemd /run /dev/shm /sys/fs/bpf -name '*colo*'
ip -o link | grep colo; ip rule | grep 221; ip xfrm state; ip xfrm policy
pgrep -a 'colo|qemu|wireguard'
true
"""


@dataclass(frozen=True)
class _Vm:
    number: int
    name: str

    @property
    def address(self) -> str:
        return f"{middle.CLIENTS}.{10 + self.number}"

    @property
    def first(self) -> str:
        """The host that starts it."""
        return "b" if self.number % 2 else "a"

    def domain(self) -> str:
        """As libvirt has it."""
        return _DOMAIN.format(
            name=self.name,
            images=_IMAGES,
            append=_APPEND,
            ip=self.address,
            number=self.number,
        )

    @property
    def client(self) -> Client:
        return Client(NAMESPACE, self.address)

    async def connect(self) -> Lines:
        """To its ledger."""
        return Lines(await served(self.client, LEDGER))


VMS = [_Vm(n, name) for n, name in enumerate(("web", *(f"vm{n}" for n in range(1, 8))))]
_UNITS = " ".join(f"colo-ebpf@{vm.name}" for vm in VMS)


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Container]]:
    """Both on; a Debian with libvirt, QEMU's images of the VMs, and the packages in /root."""
    where = os.environ.get("COLO_DEB")
    if not where:
        pytest.skip("takes minutes and Debian's mirror: run `make deb-test`")
    require("root", "bpf", "debootstrap", "nspawn", "qemu", "guest", "etcd")
    (package,) = Path(where).absolute().glob("colo-ebpf_*.deb")
    directory = Path(tempfile.mkdtemp(prefix="colo-test-walk-"))
    roots = {host: directory / host for host in HOSTS}
    try:
        with ExitStack() as made:
            _make(roots["a"], package)
            subprocess.run(["cp", "-a", roots["a"], roots["b"]], check=True)
            for root in roots.values():  # of which udev makes MAC addresses
                (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
            made.enter_context(middle.networks(NAMESPACE, directory))
            binds = {"/usr/lib/colo-ebpf/build": ROOT / "build"}  # for the kernel's headers
            on = {host: Container(host, root, binds) for host, root in roots.items()}
            for one in on.values():
                made.callback(one.kill)
                one.start()
            yield on
    finally:
        fresh.remove(directory)


def _make(root: Path, package: Path) -> None:
    root.mkdir()
    debian = fresh.debian(root, fresh.release_of(package))
    debian.apt("install", *_SYSTEM, *_LIBVIRT, "python3-prometheus-client")
    shutil.copy(package, root / "root")
    debian.apt("install", *sorted(_depends(package)))
    (root / "usr/sbin/policy-rc.d").unlink()
    images = root / _IMAGES[1:]
    for name in _GUEST:
        shutil.copy(ROOT / "build" / "guest" / name, images)
    for vm in VMS:
        with (images / f"{vm.name}.raw").open("wb") as image:
            image.truncate(64 << 20)


def _depends(package: Path) -> set[str]:
    """Names of what the package needs, which is fetched before the hosts are without a mirror."""
    words = ["dpkg-deb", "--field", str(package), "Depends"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {one.split()[0] for one in said.split(",")}


# --- what an operator does ----------------------------------------------------------------


def _install(host: Container) -> None:
    """`docs/operate/set-up.md`, but for the key."""
    host.run("apt-get install -y -q /root/colo-ebpf_*.deb")
    shared = _SHARED.format(images=_IMAGES) + middle.tables_of(host.name, _security())
    _write(host, "/etc/colo-ebpf/host.toml", shared)
    host.run("sysctl --system")


def _security() -> str:
    """The kernel seals the link if it can, as in a lab. (wireguard-go cannot for eight emulated VMs
    at once, on the processors that emulate them.)"""
    try:
        link_security.best("auto")
    except ControlError:
        return "none"
    return "auto"


def _write(host: Container, file: str, text: str) -> None:
    host.run(f"cat > {file} <<'END'\n{text}\nEND")


def _under_libvirt(host: Container, vm: _Vm) -> None:
    """The VM has run there, and its disk has entries that clients were told of."""
    _write(host, "/root/first.xml", vm.domain())
    host.run(f"virsh define /root/first.xml && virsh start {vm.name}")
    asyncio.run(_first_entries(vm))
    until(lambda: "shut off" in host.run(f"virsh domstate {vm.name}"), "it is off", _STEP_S)


async def _first_entries(vm: _Vm) -> None:
    ledger = Entries(await vm.connect())
    await ledger.append(_ENTRIES)
    ledger.lines.close()
    await power_off(vm.client)


def _import(hosts: dict[str, Container]) -> None:
    """`docs/operate/import.md`: `web` from libvirt, the others from files of it."""
    a = hosts["a"]
    web = VMS[0].name
    a.run(f"colo-ebpf import-libvirt {web} --output /etc/colo-ebpf/vms/{web}.toml")
    a.run(f"virsh dumpxml --inactive {web} > /root/{web}.xml")
    a.run(f"virsh undefine --keep-nvram {web} && chown root {_IMAGES}/{web}.raw")
    for vm in VMS[1:]:
        _write(a, f"/root/{vm.name}.xml", vm.domain())
        file = f"/etc/colo-ebpf/vms/{vm.name}.toml"
        a.run(f"colo-ebpf import-libvirt /root/{vm.name}.xml --output {file}")
    for vm in VMS:
        file = f"/etc/colo-ebpf/vms/{vm.name}.toml"
        made = a.run(f"cat {file}")
        assert made.count('role = "primary"') == 1
        other = made.replace('role = "primary"', 'role = "secondary"')
        for host in hosts.values():
            _write(host, file, made if host.name == vm.first else other)
            host.run(f"colo-ebpf config check {file}")


def _protect(hosts: dict[str, Container]) -> None:
    """The last steps of `docs/operate/set-up.md`."""
    for vm in VMS:
        hosts[vm.first].run(f"colo-ebpf arbiter init {vm.name} --yes")
    for host in hosts.values():
        host.run("colo-ebpf doctor web")
        host.run(f"systemctl enable --now {_UNITS} colo-ebpf-drain colo-ebpf-metrics", _STEP_S)


# --- what an operator looks at ------------------------------------------------------------


def _listed(host: Container) -> dict[str, dict[str, Any]]:
    """The table of `list`, by VM."""
    done = host.ask("colo-ebpf list --json")
    rows = json.loads(done.stdout) if done.stdout else []
    return {row["vm"]: row for row in rows}


def _until_protected(hosts: dict[str, Container], say: Callable[[str], None]) -> None:
    def protected() -> bool:
        tables = [_listed(host) for host in hosts.values()]
        return all(len(t) == len(VMS) and all(r["protected"] for r in t.values()) for t in tables)

    try:
        until(protected, "all VMs are protected", _STEP_S)
    except AssertionError:
        for host in hosts.values():
            say(host.ask("colo-ebpf list; journalctl -o cat -n 60 --no-pager").stdout)
        raise


def _page(host: Container, path: str) -> str:
    return host.run(f"/usr/bin/python3 -c '{_PAGE}' {path}")


async def _ledgers(vms: Sequence[_Vm]) -> list[Entries]:
    """A connection to each, which goes on where the disk is."""
    found = []
    for vm in vms:
        ledger = Entries(await vm.connect())
        ledger.number = int((await ledger.lines.ask("SUM")).split()[1])
        found.append(ledger)
    return found


async def _append(ledgers: list[Entries]) -> None:
    await asyncio.gather(*(one.append(_ENTRIES) for one in ledgers))


# --- the walk -----------------------------------------------------------------------------


@pytest.mark.timeout(3600)
def test_from_libvirt_to_eight_protected_vms_and_back_to_nothing(
    hosts: dict[str, Container], say: Callable[[str], None]
) -> None:
    a, b = hosts["a"], hosts["b"]
    _under_libvirt(a, VMS[0])
    say("libvirt's guest has written, and is off")
    before = {host.name: set(host.run(_LEFT).splitlines()) for host in hosts.values()}
    for host in hosts.values():
        _install(host)
    a.run("head -c 32 /dev/urandom > /etc/colo-ebpf/key; chmod 600 /etc/colo-ebpf/key")
    shutil.copy2(a.root / "etc/colo-ebpf/key", b.root / "etc/colo-ebpf/key")
    _import(hosts)
    _protect(hosts)
    _until_protected(hosts, say)
    say("eight VMs are protected")
    ledgers = asyncio.run(_ledgers(VMS))
    assert ledgers[0].number == _ENTRIES, "what libvirt's guest wrote"
    asyncio.run(_append(ledgers))

    with _watched(b) as shown:
        assert _page(b, "/serving/web").startswith("503")
        a.kill()
        asyncio.run(_append(ledgers))
        until(lambda: _page(b, "/serving/web").startswith("200"), "web is served", _STEP_S)
    assert all(f"{vm.name} " in shown.read_text() for vm in VMS)
    _all_on(b)
    say(b.run("colo-ebpf list"))
    a.start()
    _until_protected(hosts, say)
    asyncio.run(_append(ledgers))
    say("all are protected again")

    _all_end(hosts, ledgers)
    for host in hosts.values():
        host.run("apt-get purge -y -q colo-ebpf")
        left = set(host.run(_LEFT).splitlines()) - before[host.name]
        assert not left, "\n".join(sorted(left))


@contextmanager
def _watched(host: Container) -> Iterator[Path]:
    """What `list --watch` shows there meanwhile."""
    shown = host.root.with_suffix(".watched")
    with shown.open("wb") as out:
        watch = subprocess.Popen(
            host.command("colo-ebpf", "list", "--watch", "0.5"),
            stdin=subprocess.DEVNULL,
            stdout=out,
        )
        try:
            yield shown
        finally:
            watch.terminate()
            watch.wait()


def _all_on(host: Container) -> None:
    """It serves all VMs, and table, metrics, journal and `check` say so."""
    served_on = {name: row["serves_on"] for name, row in _listed(host).items()}
    assert served_on == {vm.name: host.name for vm in VMS}
    metrics = _page(host, "/metrics")
    for vm in VMS:
        assert f'colo_ebpf_serving{{host="{host.name}",vm="{vm.name}"}} 1.0' in metrics
        assert _page(host, f"/protected/{vm.name}").startswith("503")
        told = host.run(f"journalctl -p warning -o cat --no-pager COLO_VM={vm.name}")
        assert "alone, unprotected" in told, told
        assert host.ask(f"colo-ebpf check {vm.name}").returncode == 1


def _all_end(hosts: dict[str, Container], ledgers: list[Entries]) -> None:
    """The guests power themselves off; then the units end, and no VM is left."""
    for ledger in ledgers:
        ledger.lines.close()
    for vm in VMS:
        asyncio.run(power_off(vm.client))

    def off() -> bool:
        asked = [host.ask(f"colo-ebpf status {v.name}") for host in hosts.values() for v in VMS]
        return all("powered itself off" in done.stdout for done in asked)

    until(off, "all are off", _STEP_S)
    for host in hosts.values():
        host.run(f"systemctl disable --now {_UNITS} colo-ebpf-drain colo-ebpf-metrics")
