# SPDX-License-Identifier: GPL-2.0-only
"""What seals the link on this host: it is chosen at the daemon's start; what is left of another
way is removed.
"""

from __future__ import annotations

import logging
from typing import Any

from colo_ebpf.control import link_tunnel
from colo_ebpf.control.link_seal import LinkSeal
from colo_ebpf.control.link_tunnel import LinkTunnel, Through
from colo_ebpf.datapath.net import wgdevice, xfrm
from colo_ebpf.datapath.net.ipsec import LinkEnds
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.errors import ControlError

_log = logging.getLogger(__name__)
Seals = LinkSeal | LinkTunnel
UNSEALED = (
    'link.security is "none": whoever is on the way between the hosts reads and forges frames, '
    "memory and disk of the VM"
)


def best(wanted: str) -> Security:
    """Of what this host has. `wanted`: link.security. ControlError if there is nothing, and the
    configuration does not say that there need not be."""
    if wanted == "none":
        return Security.NONE
    if wanted == "wireguard":
        if why := link_tunnel.why_not():
            raise ControlError(
                f'link.security = "wireguard": {why}: load the module wireguard, or install '
                f"{wgdevice.PROGRAM}"
            )
        return Security.WIREGUARD
    why = xfrm.why_not()
    if not why:
        return Security.IPSEC
    if wanted == "auto" and not link_tunnel.kernel_lacks():
        return Security.WIREGUARD
    raise ControlError(
        f'link.security = "{wanted}": the kernel cannot seal the link by IPsec ({why}): load '
        f'esp4 and esp6{_instead(wanted)}, or write link.security = "none" if nobody else can '
        "reach the link"
    )


def _instead(wanted: str) -> str:
    """WireGuard that is not the kernel's has to be asked for."""
    there = wanted == "auto" and wgdevice.program_is_there()
    return f' or write "wireguard", which {wgdevice.PROGRAM} does' if there else ""


def choose(wanted: str, ends: LinkEnds, through: Through) -> Security:
    """The same, and do it: nothing of another way stays. Blocks; ControlError."""
    chosen = best(wanted)
    if chosen is not Security.IPSEC:
        xfrm.remove(ends)
    if chosen is Security.WIREGUARD:
        link_tunnel.begin(through)
    else:
        through.remove()
    if chosen is Security.NONE:
        _log.warning("%s", UNSEALED)
    return chosen


def compatibility(security: Security) -> dict[str, str]:
    """Both hosts seal the link the same way, or none does."""
    return {"link.security": security.value}


def unsealed() -> dict[str, Any]:
    """The status of a link that is not sealed."""
    return {
        "security": "none",
        "agreed": False,
        "seals_with": None,
        "opens": None,
        "key_age_ms": None,
        "refused": {},
        "by": "",
        "warning": UNSEALED,
    }
