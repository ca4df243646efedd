# SPDX-License-Identifier: GPL-2.0-only
"""A tunnel's names and addresses, the words of a program, and who is to be met."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.peer import tunnel_keys
from colo_ebpf.control.peer.tunnel_keys import Meet
from colo_ebpf.datapath.net import ipsec, wireguard
from colo_ebpf.datapath.net.ipsec import FramesPort
from colo_ebpf.datapath.net.wireguard import Contact, Device, TunnelEnds

HERE = TunnelEnds("web", "192.0.2.1", "192.0.2.2", 28_001, 20_001)
THERE = replace(HERE, local="192.0.2.2", peer="192.0.2.1")

# What wireguard-go 0.0.20220316 answers; the pair of keys is of `wg genkey` and `wg pubkey`.
ALICE = bytes.fromhex("10881709da828ab6c1d579d6259b3e8cc44daa113655a8383f10adc544122c63")
ALICE_PUBLIC = bytes.fromhex("3c88a2d5d58f2985f9342535ccee4d4db657cf7a4e97582416de71ee8a691a7d")
TOLD = f"""\
private_key={ALICE.hex()}
listen_port=28001
public_key=72a8bc01b703aaa18277db4e70619e80f30630ef9c078a79570e004fac54e641
preshared_key=0000000000000000000000000000000000000000000000000000000000000007
protocol_version=1
endpoint=192.0.2.2:28001
last_handshake_time_sec=1795950058
last_handshake_time_nsec=394498585
tx_bytes=244
rx_bytes=188
persistent_keepalive_interval=25
allowed_ip=fd99::2/128
public_key=00a8bc01b703aaa18277db4e70619e80f30630ef9c078a79570e004fac54e641
endpoint=[fd00::2]:5
errno=0

"""


def test_both_hosts_know_all_four_addresses_and_have_devices_of_their_own() -> None:
    for where in (HERE.inside, HERE.frames):
        assert where(HERE.local) == (THERE.inside if where == HERE.inside else THERE.frames)(
            THERE.peer
        )
    found = {f(a) for f in (HERE.inside, HERE.frames) for a in (HERE.local, HERE.peer)}
    assert len(found) == 4
    assert HERE.device != THERE.device, "both may be on one machine, as in a lab"
    assert HERE.device != replace(HERE, vm="mail").device
    assert HERE.inside(HERE.local) != replace(HERE, vm="mail").inside(HERE.local)
    assert len(HERE.device) <= 15


@given(st.text(min_size=1), st.ip_addresses())
def test_addresses_are_of_their_kinds(vm: str, address: ipaddress.IPv4Address) -> None:
    ends = replace(HERE, vm=vm)
    assert ipaddress.IPv6Address(ends.frames(str(address))).is_link_local
    inside = ipaddress.IPv6Address(ends.inside(str(address)))
    assert inside in ipaddress.IPv6Network("fd00::/8")


def test_frames_come_through_the_tunnel_or_not_at_all() -> None:
    port = HERE.frames_only
    assert port == FramesPort(HERE.frames(HERE.local), HERE.frames(HERE.peer), 20_001)
    commands = list(ipsec.require(port))
    assert commands == [
        f"xfrm policy update src {port.peer}/128 dst {port.local}/128 proto 17 dport 20001"
        " dir in action allow priority 1000",
        "xfrm policy update src 0.0.0.0/0 dst 0.0.0.0/0 proto 17 dport 20001"
        " dir in action block priority 2000",
        "xfrm policy update src ::/0 dst ::/0 proto 17 dport 20001"
        " dir in action block priority 2000",
    ]
    assert len(ipsec.selectors(port)) == 3
    printed = (
        f"src {port.peer}/128 dst {port.local}/128 proto udp dport 20001 \n\tdir in priority 1000"
        " ptype main \n"
        "src ::/0 dst ::/0 proto udp dport 20001 \n\tdir in action block priority 2000 \n"
    )
    lacking = ipsec.selectors(port) - ipsec.policies(printed)
    assert [one.source for one in lacking] == ["0.0.0.0/0"]


def test_what_a_program_says_is_read() -> None:
    device = wireguard.parse(TOLD)
    assert (device.public_key, device.port) == (ALICE_PUBLIC, 28_001)
    first, second = device.contacts
    assert first.public_key[:2] == b"\x72\xa8"
    assert first.preshared_key[-1] == 7
    assert (first.endpoint, first.handshake_s) == (("192.0.2.2", 28_001), 1_795_950_058)
    assert (second.endpoint, second.handshake_s) == (("fd00::2", 5), 0)
    assert "00000007" not in repr(device), "no log has it"


def test_a_device_without_a_key_has_none() -> None:
    assert wireguard.parse("listen_port=40000\nerrno=0\n\n") == Device(b"", 40_000)
    zeros = f"private_key={bytes(32).hex()}\nerrno=0\n\n"
    assert wireguard.parse(zeros).public_key == b""


@given(st.text())
def test_whatever_a_program_says_is_read_or_refused(said: str) -> None:
    with contextlib.suppress(ValueError, KeyError):
        assert isinstance(wireguard.parse(said), Device)
    assert isinstance(wireguard.failure(said), str)


def test_what_a_program_is_told() -> None:
    assert wireguard.set_identity(ALICE, 28_001) == (
        f"set=1\nprivate_key={ALICE.hex()}\nlisten_port=28001\n\n"
    )
    told = wireguard.set_contact(Contact(b"p" * 32, b"s" * 32, ("fd00::2", 5)), HERE.allowed)
    assert told.splitlines() == [
        "set=1",
        f"public_key={(b'p' * 32).hex()}",
        f"preshared_key={(b's' * 32).hex()}",
        "endpoint=[fd00::2]:5",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        f"allowed_ip={HERE.inside(HERE.peer)}/128",
        f"allowed_ip={HERE.frames(HERE.peer)}/128",
        "",
    ]
    assert "replace_peers" not in told, "that would end the session"
    assert wireguard.drop_contact(b"p" * 32).endswith("remove=true\n\n")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("errno=0\n\n", ""),
        ("errno=-98\n\n", "Address already in use"),
        ("errno=98\n\n", "Address already in use"),
        ("errno=77777\n\n", "error 77777"),
        ("", "it has ended"),
    ],
)
def test_why_a_program_has_not_done_it(answer: str, why: str) -> None:
    assert wireguard.failure(answer) == why


def test_both_make_the_same_preshared_key_of_what_both_know() -> None:
    one, other = b"a" * 32, b"b" * 32
    key = tunnel_keys.preshared_key(b"the pair's key....", one, other)
    assert len(key) == 32
    assert key == tunnel_keys.preshared_key(b"the pair's key....", other, one)
    assert key != tunnel_keys.preshared_key(b"another pair's key", one, other)
    assert key != tunnel_keys.preshared_key(b"the pair's key....", one, b"c" * 32)


def test_the_peer_is_met_once_for_each_end_and_key() -> None:
    end = b"a" * 32
    assert tunnel_keys.next_step(b"", "key", None) is None, "it has told nothing yet"
    assert tunnel_keys.next_step(end, "", None) is None
    assert tunnel_keys.next_step(end[1:], "key", None) is None, "no key is that short"
    met = tunnel_keys.next_step(end, "key", None)
    assert met == Meet(end, "key")
    assert tunnel_keys.next_step(end, "key", met) is None
    assert tunnel_keys.next_step(end, "following", met) == Meet(end, "following")
    assert tunnel_keys.next_step(b"b" * 32, "key", met) == Meet(b"b" * 32, "key")


def test_a_session_lasts_three_minutes() -> None:
    assert not tunnel_keys.agreed(None)
    assert tunnel_keys.agreed(179 * 10**9)
    assert not tunnel_keys.agreed(180 * 10**9)
