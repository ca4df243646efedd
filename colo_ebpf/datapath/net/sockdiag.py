# SPDX-License-Identifier: GPL-2.0-only
"""TCP connections of this network, and whether their packets get an answer (sock_diag(7))."""

from __future__ import annotations

import ipaddress

from pyroute2 import NetlinkError
from pyroute2.netlink.diag import DiagSocket

from colo_ebpf import addresses
from colo_ebpf.errors import DatapathError
from colo_ebpf.model import Sending

_ESTABLISHED, _SYN_SENT = 1, 2  # net/tcp_states.h
_STATES = (1 << _ESTABLISHED) | (1 << _SYN_SENT)
_INFO = 1 << 1  # INET_DIAG_INFO, as an extension


def sending(to: str, port: int) -> tuple[Sending, ...]:
    """All that go to this address and port. Raises DatapathError.

    The kernel walks its table of connections: a millisecond, not for the event loop.
    """
    try:
        with DiagSocket() as diag:
            diag.bind()
            found = diag.get_sock_stats(
                family=addresses.family(to), states=_STATES, extensions=_INFO, dport=port
            )
    except (OSError, NetlinkError) as e:
        raise DatapathError(f"sock_diag: {e}") from e
    wanted = ipaddress.ip_address(to)
    rows = []
    for one in found:
        info = one.get_attr("INET_DIAG_INFO")
        if info is None or ipaddress.ip_address(one["idiag_dst"]) != wanted:
            continue
        rows.append(
            Sending(
                here=one["idiag_sport"],
                port=port,
                connected=one["idiag_state"] == _ESTABLISHED,
                unanswered=info["tcpi_unacked"],
                tries=info["tcpi_retransmits"],
                silent_ms=info["tcpi_last_ack_recv"],
            )
        )
    return tuple(rows)
