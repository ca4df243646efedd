# SPDX-License-Identifier: GPL-2.0-only
"""The arbiter's record: who may speak for the VM. Values and legal moves. Pure.

The record names *VM instances* (``<host>/<16 hex>``, made when QEMU is started), never hosts
alone: a host that comes back with an older VM finds that VM unnamed and ends it.

Every move raises ArbiterError when it is not legal from the record it is made on, so that an
illegal record is never written. `generation` grows by one with each move; `nonce` is put in by
the arbiter's client and tells whose write it was.
"""

from __future__ import annotations

import enum
import re
import time

import msgspec

from colo_ebpf.errors import ArbiterError

VNI_MAX = (1 << 21) - 1  # the VXLAN id has 24 bits, three of them say which NIC
LATEST_S = 1 << 37  # a time in seconds that can be told as one
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_INSTANCE = re.compile(_HOST.pattern + r"/[0-9a-f]{16}")


class Kind(enum.Enum):
    """How far the owner has come."""

    COLD = "cold"  # no VM: `owner` is the host whose image may be started
    CLAIMED = "claimed"  # one instance alone, not yet emitting
    ACTIVE = "active"  # one instance alone, emitting
    PAIRED = "paired"  # owner is the primary, other the secondary
    OFF = "off"  # no VM: its guest powered it off. `owner` is the host that has the image


class Disk(enum.Enum):
    """Whether the owner's image is whole by itself."""

    WHOLE = "whole"
    OVERLAID = "overlaid"  # the survivor's overlays are still in memory


class Record(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """One generation of the record.

    What is at its default is not written: a daemon of a version that does not know a field is
    disturbed by it only where it is used.

    `image` is the host whose image alone holds everything a client was ever told: the one to
    start if no VM is left. Empty while a survivor's overlays are only in its memory.
    """

    generation: int
    kind: Kind
    owner: str
    other: str = ""  # PAIRED: the secondary. CLAIMED: the instance a claim may go back to
    vni: int = 0  # of the pairing; a claim keeps that of the pairing it ended, a start has 0
    image: str
    given: bool = False  # CLAIMED: its loser wrote it (a switchover), nobody need turn it off
    off_at_s: int = 0  # OFF: when, in seconds since 1970; 0: not known
    nonce: str = ""

    def __post_init__(self) -> None:
        """Refuse what no legal move can have made (ValueError, as msgspec wants it)."""
        _check(self.generation >= 1, "generation must be at least 1")
        _check(0 <= self.vni <= VNI_MAX, "vni must be within 0..2^21-1")
        no_vm = self.kind in (Kind.COLD, Kind.OFF)
        name = _HOST if no_vm else _INSTANCE
        _check(name.fullmatch(self.owner) is not None, f"owner {self.owner!r} is not a valid name")
        other_ok = not self.other or _INSTANCE.fullmatch(self.other) is not None
        _check(other_ok, f"other {self.other!r} is not an instance")
        _check(not self.image or _HOST.fullmatch(self.image) is not None, "image is not a host")
        if self.kind is Kind.PAIRED:
            _check(self.other != "" and self.vni > 0, "a pair needs two instances and a vni")
            _check(host_of(self.other) != host_of(self.owner), "a pair needs two hosts")
        if no_vm or self.kind is Kind.ACTIVE:
            _check(self.other == "" and self.vni == 0, f"a {self.kind.value} record names one")
        if self.kind is not Kind.ACTIVE:
            _check(self.image != "", f"a {self.kind.value} record needs the host of the image")
        asked = self.kind is Kind.CLAIMED and self.other != ""
        _check(asked or not self.given, "only a claim that can go back was given")
        is_off = self.kind is Kind.OFF
        _check(0 <= self.off_at_s < LATEST_S, "off_at_s is no time")
        _check(is_off or not self.off_at_s, "only a VM that is off was")

    @property
    def disk(self) -> Disk:
        """Whole, or still overlaid by what only the survivor's memory holds."""
        return Disk.WHOLE if self.image else Disk.OVERLAID

    def names(self, instance: str) -> bool:
        """Whether this VM may live: it is the owner, the partner, or may get the claim back."""
        no_vm = self.kind in (Kind.COLD, Kind.OFF)
        return not no_vm and instance in (self.owner, self.other)

    def meaning(self) -> Record:
        """Without what tells one write from another."""
        return msgspec.structs.replace(self, generation=1, nonce="")

    def is_same(self, meant: Record) -> bool:
        """This is what was meant to be written, whoever wrote it."""
        return self.generation == meant.generation and self.meaning() == meant.meaning()

    def partner_of(self, instance: str) -> str:
        """The other instance the record names ("" if there is none)."""
        return self.other if instance == self.owner else self.owner

    def describe(self) -> str:
        """One phrase for sentences and status."""
        if self.kind is Kind.PAIRED:
            return f"paired {self.owner} (primary), {self.other} (secondary)"
        if self.kind is Kind.COLD:
            return f"cold, to be started by {self.owner}"
        if self.kind is Kind.OFF:
            at = f" at {clock(self.off_at_s)}" if self.off_at_s else ""
            return f"off, by its guest{at}, the image on {self.owner}"
        return f"solo {self.owner} {self.kind.value}, disk {self.disk.value}"


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def clock(seconds: int) -> str:
    """Seconds since 1970, for people on two hosts."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def weightier(one: Record | None, other: Record | None) -> Record | None:
    """Of two swaps of unknown outcome, the one that may have made the peer a secondary."""
    if one is None or (other is not None and other.kind is Kind.PAIRED):
        return other
    return one


def host_of(instance: str) -> str:
    """The host part of an instance (a bare host is its own)."""
    return instance.partition("/")[0]


def cold(host: str, generation: int = 1) -> Record:
    """The first record: `host` may start the VM from its image."""
    return _made(generation=generation, kind=Kind.COLD, owner=host, image=host)


def start(old: Record, instance: str) -> Record:
    """cold or off -> claimed, or active -> claimed on the same host: boot from the whole image."""
    legal = old.kind in (Kind.COLD, Kind.OFF, Kind.ACTIVE) and old.image == host_of(instance)
    _need(legal and host_of(old.owner) == host_of(instance), old, f"start {instance}")
    return _next(old, kind=Kind.CLAIMED, owner=instance, image=old.image)


def activate(old: Record) -> Record:
    """claimed -> active. A former secondary's disk is overlaid from here on."""
    _need(old.kind is Kind.CLAIMED, old, "activate")
    image = old.image if old.image == host_of(old.owner) else ""
    return _next(old, kind=Kind.ACTIVE, owner=old.owner, image=image)


def pair(old: Record, secondary: str, vni: int) -> Record:
    """active -> paired, by the owner; only from a whole disk."""
    _need(old.kind is Kind.ACTIVE and old.disk is Disk.WHOLE, old, f"pair with {secondary}")
    return _next(old, kind=Kind.PAIRED, owner=old.owner, other=secondary, vni=vni, image=old.image)


def hand_over(old: Record) -> Record:
    """paired -> claimed by the secondary, written by the primary: a switchover."""
    _need(old.kind is Kind.PAIRED, old, "hand over")
    return msgspec.structs.replace(claim(old, old.other), given=True)


def claim(old: Record, instance: str) -> Record:
    """paired -> claimed by one of the two; or an abandoned claim taken back by its partner."""
    takes_back = old.kind is Kind.CLAIMED and instance == old.other != ""
    _need((old.kind is Kind.PAIRED and old.names(instance)) or takes_back, old, f"claim {instance}")
    return _next(
        old,
        kind=Kind.CLAIMED,
        owner=instance,
        other=old.partner_of(instance),
        vni=old.vni,
        image=old.image,
    )


def concede(old: Record, loser: str) -> Record:
    """paired or claimed -> claimed by the partner; the loser's VM is out for good."""
    winner = old.partner_of(loser)
    legal = old.kind in (Kind.PAIRED, Kind.CLAIMED) and old.names(loser) and winner != ""
    _need(legal and winner != loser, old, f"concede for {loser}")
    return _next(old, kind=Kind.CLAIMED, owner=winner, vni=old.vni, image=old.image)


def hand_to_image(old: Record) -> Record:
    """claimed, with no VM left on either host -> cold: the image that holds everything."""
    _need(old.kind is Kind.CLAIMED and old.other == "", old, "give up every VM")
    return _next(old, kind=Kind.COLD, owner=old.image, image=old.image)


def choose_image(old: Record, host: str) -> Record:
    """Any -> cold: an operator has ended every VM, and says whose image counts."""
    return cold(host, old.generation + 1)


def reassert(old: Record) -> Record:
    """active -> active, paired -> paired: who writes it proves that it still is so (a read never
    proves it), and that no move sent before can be written any more."""
    _need(old.kind in (Kind.ACTIVE, Kind.PAIRED), old, "re-assert")
    return _next(old, kind=old.kind, owner=old.owner, other=old.other, vni=old.vni, image=old.image)


def commit(old: Record) -> Record:
    """active overlaid -> active whole: the owner's overlays are merged into its image."""
    _need(old.kind is Kind.ACTIVE and old.disk is Disk.OVERLAID, old, "call the disk whole")
    return _next(old, kind=Kind.ACTIVE, owner=old.owner, image=host_of(old.owner))


def power_off(old: Record, at_s: int) -> Record:
    """claimed, active or paired -> off, by an owner whose image is whole: its guest ended it."""
    legal = old.kind in (Kind.CLAIMED, Kind.ACTIVE, Kind.PAIRED)
    _need(legal and old.image == host_of(old.owner), old, "call it off")
    return _next(old, kind=Kind.OFF, owner=old.image, image=old.image, off_at_s=at_s)


def sealed(record: Record, nonce: str) -> Record:
    """The record with the writer's nonce in it."""
    return msgspec.structs.replace(record, nonce=nonce)


def _need(legal: bool, old: Record, move: str) -> None:
    if not legal:
        raise ArbiterError(f"cannot {move}: generation {old.generation} says {old.describe()}")


def _next(old: Record, **fields: object) -> Record:
    return _made(generation=old.generation + 1, **fields)


def _made(**fields: object) -> Record:
    try:
        return Record(**fields)  # type: ignore[arg-type]
    except ValueError as e:
        raise ArbiterError(f"not a legal record: {e}") from e


def encode(record: Record) -> bytes:
    """JSON, one line."""
    return msgspec.json.encode(record) + b"\n"


def decode(text: bytes, where: str) -> Record:
    """Parse and check a record; raises ArbiterError naming `where` it was read."""
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, ValueError) as e:
        raise ArbiterError(f"the record in {where} is malformed: {e}") from e
