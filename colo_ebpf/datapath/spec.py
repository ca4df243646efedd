# SPDX-License-Identifier: GPL-2.0-only
"""What the data plane of one VM is made of, as the configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.datapath.bpf.loader import Sizes
from colo_ebpf.datapath.net import tunnel
from colo_ebpf.datapath.net.hooks import By
from colo_ebpf.datapath.net.ipsec import Ends, FramesPort, LinkEnds


@dataclass(frozen=True, slots=True)
class PlaneNic:
    """One network card of the VM: its tap, and the bridge of its clients.

    `mac`: the one address that its guest may speak with; "": any.
    """

    tap: str
    bridge: str
    mtu: int
    mac: str = ""
    vlan: int = 0  # on a bridge that filters VLANs; 0: the one it gives a new port
    trunk: tuple[int, ...] = ()  # VLANs that the guest tags itself
    queues: int = 1  # of the tap


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """`by`: what is to hold the programs; None: the safest that this kernel has.

    `peer_callers`: users of this host, of whom alone the peer's `peer_ports` are reached.
    `sealed`: what IPsec is for, or where frames come to that another tunnel seals; None: the link
    is not sealed.
    """

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
    sizes: Sizes
    by: By | None = None
    peer_address: str = ""
    peer_ports: tuple[int, ...] = ()
    peer_callers: tuple[int, ...] = ()
    sealed: Ends | None = None

    @property
    def mtu(self) -> int:
        """The largest of the NICs': what the link has to carry."""
        return max(nic.mtu for nic in self.nics)

    @property
    def link_mtu(self) -> int:
        """The least that the underlay has to have."""
        by_ipsec = isinstance(self.sealed, LinkEnds)
        return tunnel.needed_mtu(self.mtu, self.frames_address, sealed=by_ipsec)

    @property
    def tunnelled(self) -> bool:
        """The underlay is a tunnel itself."""
        return isinstance(self.sealed, FramesPort)

    @property
    def frames_address(self) -> str:
        """This host's, that frames are sent from."""
        return self.sealed.local if isinstance(self.sealed, FramesPort) else self.link_address

    @property
    def frames_peer(self) -> str:
        """The peer's, that they are sent to."""
        return self.sealed.peer if isinstance(self.sealed, FramesPort) else self.peer_address
