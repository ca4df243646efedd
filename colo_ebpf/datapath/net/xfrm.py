# SPDX-License-Identifier: GPL-2.0-only
"""States and policies of IPsec in the calling thread's network namespace, by `ip xfrm`: pyroute2
has no such sockets. Commands go to its standard input, so that no key is on a command line.

All functions block; use a thread.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path

from colo_ebpf.datapath.net import ipsec
from colo_ebpf.datapath.net.ipsec import Ends, LinkEnds, Selector
from colo_ebpf.errors import AttachError

_COUNTERS = Path("/proc/thread-self/net/xfrm_stat")
_NOBODY = LinkEnds("", "192.0.2.1", "192.0.2.2", 0, ())  # documentation addresses (RFC 5737)
REFUSED = {
    "XfrmInTmplMismatch": "not sealed",
    "XfrmInNoPols": "not sealed",
    "XfrmInPolBlock": "not from the peer",
    "XfrmInNoStates": "sealed with a key that is not known",
    "XfrmInStateProtoError": "sealed with a wrong key, or changed on the way",
    "XfrmInStateSeqError": "repeated",
    "XfrmInStateInvalid": "sealed with a key that is not known",
    "XfrmOutNoStates": "to be sent while no key was agreed",
}


def _run(what: str, *words: str, commands: Iterable[str] = (), force: bool = False) -> str:
    """What `ip` prints. Of commands the first that fails ends it, unless it is forced."""
    text = "".join(f"{one}\n" for one in commands)
    argv = ["ip", *(["-force"] if force else []), *words]
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except OSError as e:
        raise AttachError(f"IPsec: {what}: ip: {e.strerror}; install iproute2") from e
    if done.returncode and not force:
        raise AttachError(f"IPsec: {what}: {_first_line(done.stderr) or done.returncode}")
    return done.stdout


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].removeprefix("Error: ")


def _batch(what: str, commands: Iterable[str], *, force: bool = False) -> None:
    _run(what, "-batch", "-", commands=commands, force=force)


def why_not() -> str:
    """Why this kernel cannot do it; "": it can. A state is made, of which nobody sends anything."""
    spi, key = ipsec.LEAST_SPI + secrets.randbits(24), secrets.token_bytes(ipsec.KEY_BYTES)
    try:
        _batch("try", [ipsec.add_state(_NOBODY, inbound=False, spi=spi, key=key)])
        _batch("end the trial", [ipsec.drop_state(_NOBODY, inbound=False, spi=spi)])
    except AttachError as e:
        return str(e).removeprefix("IPsec: try: ")
    return ""


def require(ends: Ends) -> None:
    """From now on the VM's ports carry what is sealed, and nothing else. Raises AttachError."""
    _batch("require it", ipsec.require(ends))


def lacking(ends: Ends) -> set[Selector]:
    """Policies that are not there."""
    listed = _run("list policies", "xfrm", "policy", "list")
    return ipsec.selectors(ends) - ipsec.policies(listed)


def add_state(ends: LinkEnds, *, inbound: bool, spi: int, key: bytes) -> None:
    """Raises AttachError, too if there is such a state."""
    command = ipsec.add_state(ends, inbound=inbound, spi=spi, key=key)
    _batch(f"add the state {spi:#x}", [command])


def keep_states(ends: LinkEnds, *, inbound: bool, spi: int) -> int:
    """Remove this VM's other states one way; returns how many."""
    others = states(ends, inbound=inbound) - {spi}
    commands = [ipsec.drop_state(ends, inbound=inbound, spi=one) for one in others]
    if commands:
        _batch("remove old states", commands, force=True)
    return len(commands)


def states(ends: LinkEnds, *, inbound: bool) -> set[int]:
    """SPIs of this VM's states one way."""
    words = ("xfrm", "state", "list", "reqid", str(ends.request_id))
    return ipsec.spis(ends, _run("list states", *words), inbound=inbound)


def why_no_policies() -> str:
    """Why this kernel cannot close a port to others; "": it can."""
    try:
        _run("list policies", "xfrm", "policy", "list")
    except AttachError as e:
        return str(e).removeprefix("IPsec: ")
    return ""


def remove(ends: Ends) -> None:
    """All that there is of this VM; a kernel without IPsec has nothing."""
    listed = _run("list policies", "xfrm", "policy", "list", force=True)
    ours = ipsec.selectors(ends) & ipsec.policies(listed)
    commands = [ipsec.drop_policy(one) for one in ours]
    if not commands:
        return
    _batch("remove policies", commands, force=True)
    if isinstance(ends, LinkEnds):
        for inbound in (False, True):
            keep_states(ends, inbound=inbound, spi=0)


def refused() -> dict[str, int]:
    """Packets that the kernel refused in this network namespace, by why, since it booted."""
    found: dict[str, int] = {}
    try:
        lines = _COUNTERS.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, count = line.partition(" ")
        why = REFUSED.get(name.strip())
        if why and int(count):
            found[why] = found.get(why, 0) + int(count)
    return found
