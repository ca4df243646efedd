# SPDX-License-Identifier: GPL-2.0-only
"""What daemons tell each other: the sender's whole state in one datagram, sealed (`envelope`).

There is no other protocol and nothing is acknowledged: every heartbeat repeats everything, over
both paths, so any one of them that arrives is enough. Between them the frames of the other data
plane tell that the link and the host live: while a pair is at rest its daemons say only in every
third beat that they have nothing new to say. A datagram counts only if it is fresh:

- It echoes the *boot id* of the receiver's daemon, so it was made after the receiver started; one
  without the echo only tells whom to echo. What was recorded earlier is worth nothing.
- Its number is above the last one of the same boot id; a boot id that was replaced by a newer one
  is never listened to again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from colo_ebpf.control.peer.absence import Absence
from colo_ebpf.control.peer.envelope import Run, Seal
from colo_ebpf.control.peer.link_keys import Offer
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.errors import Refusal, RefusedError
from colo_ebpf.model import Endpoints, VmHealth

GREET_AFTER_NS = 200_000_000  # silence after which a new run of the peer's daemon is greeted
VOUCHED_NS = 500_000_000  # so long after the daemon was heard its plane's frames speak for it too
REFUSAL_HOLDS_NS = 2_500_000_000
CHECKPOINT_WORDS = (
    *("announced", "armed", "turned", "loaded"),
    *("question", "worth_ns", "watches", "spent", "idle"),
)
LACKS_CHARACTERS = 300
AHEAD = 32  # datagrams sealed at once


class Path(enum.Enum):
    """The two ways between the hosts."""

    LINK = "link"
    MANAGEMENT = "management"


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a planned operation."""

    token: str  # whose it is
    done: bool
    sentence: str
    outage_ns: int = 0  # the old primary: from withholding until the other one is active


class PeerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything one daemon says of itself."""

    vm: str
    host: str
    boot: str  # id of this run of the daemon
    echo: str = ""  # boot id of the other daemon, as last heard
    state: str = ""  # name of the sender's decide.State
    generation: int = 0  # of the record, as last read
    instance: str = ""
    health: VmHealth = VmHealth.NONE
    fit: bool = True  # the VM may be made the only one; see `heals`
    vni: int = 0  # the pairing offered, joined or in force
    endpoints: Endpoints | None = None  # secondary: where its QEMU listens for that pairing
    announced: int = 0  # primary: epoch of the checkpoint to come
    armed: int = 0  # secondary: will turn to this epoch at its next STOP
    turned: int = 0  # highest epoch ever in the turn cell: no later one may be below
    loaded: int = 0  # secondary: epoch of the checkpoint it runs on
    question: int = 0  # primary: the held answer it asks about, by when it came; 0: none
    worth_ns: int = 0  # primary: processor time that the SVM may spend on it
    watches: int = 0  # secondary: the question it watches its VM for
    spent: int = 0  # secondary: the last question for which to wait is in vain
    idle: bool = False  # secondary: its VM was idle then, else it worked in vain
    want: str = ""  # secondary: why it wants a checkpoint
    offsets_at: int = 0  # index of the first of `offsets` among all it hands over
    offsets: list[bytes] = []  # primary, pairing: lasting offsets
    offsets_have: int = 0  # secondary: how many of them it has
    link_offer: Offer | None = None  # how what it receives over the link is to be sealed
    seals_with: int = 0  # SPI of the receiver's offer that it uses; 0: none
    sealed_with: int = 0  # of the last one that it used
    tunnel: bytes = b""  # public key of its end of the tunnel that carries the link; "": none
    keys: list[str] = []  # names of the pair's keys that it hears; see `key_ring`
    lacks: str = ""  # what is wrong with its host's devices
    arbiter: str = ""  # why its look at the arbiter failed
    hears: bool = False  # frames of the receiver's plane reach the sender's
    compatibility: dict[str, str] = msgspec.field(  # while it has no pair: what has to be equal
        default_factory=dict,
        name="likeness",  # as it has always been sent
    )
    gave_up: str = ""  # why its last attempt to pair came to nothing
    last_words: str = ""  # of the last QEMU that ended there while it joined a pairing
    leaving: bool = False  # the daemon was told to end; its VM runs on
    switchover: str = ""  # secondary: token of the one its operator asks for
    answer: Answer | None = None  # to the last planned operation
    pause: Pause = Pause()  # the newest word on it that the sender knows

    @property
    def heals(self) -> bool:
        """Unfit, but only until the checkpoint it wants is loaded."""
        return not self.fit and bool(self.want)

    def differs_in_checkpoints_only(self, before: PeerState) -> bool:
        """It differs in nothing but words on checkpoints, of which no decision depends."""
        mine = {word: getattr(self, word) for word in CHECKPOINT_WORDS}
        return self == msgspec.structs.replace(before, **mine)


class Speech:
    """The datagrams of one run of a daemon: numbered, and put into words once for each state.

    What is said again is sealed some datagrams ahead, and so it is opened (`PeerView`). Between two
    beats all a daemon needs falls out of the caches: the first of a row takes twenty times as long
    as the others.
    """

    def __init__(self, seal: Seal) -> None:
        self._run = seal.begin()
        self._number = 0
        self._state: PeerState | None = None
        self._words = b""
        self._ready: list[bytes] = []  # the next one last

    def say(self, state: PeerState) -> bytes:
        """The next one."""
        if state is not self._state:
            self._state, self._words = state, words(state)
            self._make(1)
        elif not self._ready:
            self._make(AHEAD)
        return self._ready.pop()

    def seal_with(self, pair_key: bytes) -> None:
        """Another key, if it is one. What was sealed ahead is said anew, with the next numbers."""
        if pair_key != self._run.pair_key:
            self._run, self._ready = Run.begin(pair_key), []

    @property
    def pair_key(self) -> bytes:
        """That it seals with."""
        return self._run.pair_key

    def _make(self, count: int) -> None:
        """Numbers of what was sealed before and is not needed any more are left out."""
        numbers = range(self._number + count, self._number, -1)
        self._number += count
        self._ready = [self._run.close(number, self._words) for number in numbers]


def words(state: PeerState) -> bytes:
    """What a datagram says."""
    return msgspec.msgpack.encode(state)


def _understood(said: bytes) -> PeerState:
    try:
        return msgspec.msgpack.decode(said, type=PeerState)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise RefusedError(Refusal.MALFORMED, str(e)) from e


@dataclass(slots=True)
class _PathView:
    number: int = -1
    heard_ns: int | None = None
    longest_ns: int = 0  # between two states of one run of the peer's daemon
    long: int = 0  # such silences that came near the timeout
    refused_ns: int | None = None  # first and last time its host said that nobody listens
    refused_last_ns: int = 0


@dataclass(slots=True)
class PeerView:
    """All we know of the peer: its last state, and when each path last carried one.

    `started_ns` stands in for "last heard" until the first datagram: see `listens`.
    """

    vm: str
    host: str  # the peer's
    boot: str  # ours, which it has to echo
    seal: Seal
    started_ns: int
    listening: bool = True  # until then silence tells nothing, and nothing may be decided
    silence_ns: int = 150_000_000  # a path that was silent for longer begins anew
    long_ns: int = 126_000_000  # a silence that is longer is counted
    rests_ns: int = 200_000_000  # so long this daemon sleeps at most
    report: Callable[[str], None] = lambda sentence: None
    state: PeerState | None = None
    plane_heard_ns: int = 0  # when our plane heard the peer's, as last looked at; 0: never
    echo: str = ""  # boot id to echo
    refusals: dict[Refusal, int] = field(default_factory=dict)
    last_error: str = ""
    hears_keys: list[str] = field(default_factory=list)  # names, as it last said
    pair_key: bytes = b""  # that its state was sealed with
    _absence: Absence = field(init=False)
    _opened_with: bytes = b""
    _said: bytes = b""  # by the last datagram that was authentic and meant for us
    _means: PeerState | None = None
    _numbers: dict[bytes, int] = field(default_factory=dict)  # of datagrams that say so
    _number: int = -1  # of `state`
    _bare_since_ns: int = 0  # when the link carried the first state after a frame of the plane
    _unheard_since_ns: int | None = None  # since when it says that it does not hear our plane
    _retired: set[str] = field(default_factory=set)
    _paths: dict[Path, _PathView] = field(default_factory=lambda: {p: _PathView() for p in Path})

    def __post_init__(self) -> None:
        self._absence = Absence(self.rests_ns)

    def runs(self, now_ns: int) -> None:
        """This daemon does, and hears: to be called whenever it looks. See `Absence`."""
        gap_ns = self._absence.runs(now_ns)
        if gap_ns > self.silence_ns:
            self.report(
                f"this daemon did not run for {gap_ns // 1_000_000} ms: {self.host} is not missed "
                "for that time"
            )

    def receive(self, datagram: bytes, path: Path, now_ns: int) -> bool:
        """Take one datagram; True if it brought news. Never raises on any input."""
        number, state = self._numbers.get(datagram), self._means
        if number is None or state is None:
            try:
                number, state = self._read(datagram)
            except RefusedError as e:
                self._refuse(e)
                return False
        if state is not self.state and (state.echo != self.boot or state.boot in self._retired):
            self._greet(state, now_ns)
            return False
        return self._accept(number, state, path, now_ns)

    def _read(self, datagram: bytes) -> tuple[int, PeerState]:
        """Most say what the one before said, and so will those that follow."""
        run, number, said = self.seal.open(datagram)
        self._opened_with = run.pair_key
        state = self._means
        if state is None or said != self._said:
            state = _understood(said)
            self._check_names(state)
            self._said, self._means, self._numbers = said, state, {datagram: number}
        elif number > self._number:
            numbers = range(number, number + AHEAD)
            self._numbers = {run.close(n, said): n for n in numbers}
        return number, state

    def _check_names(self, state: PeerState) -> None:
        if state.vm != self.vm:
            raise RefusedError(Refusal.VM, f"theirs {state.vm!r}, ours {self.vm!r}")
        if state.host != self.host:
            raise RefusedError(Refusal.HOST, f"it says {state.host!r}, not {self.host!r}")

    def _greet(self, state: PeerState, now_ns: int) -> None:
        """Not for us yet: echo its boot id, so that its next one is.

        A retired id stays so, and while the known one is heard nobody takes its place.
        """
        if state.boot in self._retired:
            self._refuse(RefusedError(Refusal.STALE))
        elif not self._heard_lately(now_ns):
            self.echo, self.hears_keys = state.boot, state.keys

    def _heard_lately(self, now_ns: int) -> bool:
        if self.state is None:
            return False
        return now_ns - self._said_ns() < GREET_AFTER_NS

    def _said_ns(self) -> int:
        """When a word of its daemon last came; 0: never."""
        return max(view.heard_ns or 0 for view in self._paths.values())

    def _accept(self, number: int, state: PeerState, path: Path, now_ns: int) -> bool:
        before = self.state
        if before is not None and state is not before and state.boot != before.boot:
            self._retired.add(before.boot)
            before, self._number = None, -1
            for view in self._paths.values():
                view.number, view.longest_ns = -1, 0
        view = self._paths[path]
        if number <= view.number:
            self._refuse(RefusedError(Refusal.STALE))
            return False
        was_silent = view.heard_ns is None or now_ns - view.heard_ns > self.silence_ns
        if view.number >= 0 and view.heard_ns is not None:
            silent_ns = now_ns - view.heard_ns
            view.longest_ns = max(view.longest_ns, silent_ns)
            view.long += silent_ns > self.long_ns
        view.number, view.heard_ns, view.refused_ns = number, now_ns, None
        self.echo, self.hears_keys, self.pair_key = state.boot, state.keys, self._opened_with
        if path is Path.LINK and (was_silent or self.plane_heard_ns >= self._bare_since_ns):
            self._bare_since_ns = now_ns
        if number <= self._number:
            return False  # the same, over the other path
        if state.hears:
            self._unheard_since_ns = None
        elif self._unheard_since_ns is None or before is None:
            self._unheard_since_ns = now_ns
        self.state, self._number = state, number
        return state is not before and state != before

    def nobody_listens(self, path: Path, now_ns: int) -> None:
        """The peer's host is up and answered that its daemon is not."""
        view = self._paths[path]
        view.refused_last_ns = now_ns
        if view.refused_ns is None:
            view.refused_ns = now_ns

    def age_ns(self, path: Path, now_ns: int) -> int:
        """Time since the path last carried a sign of life (since our start if never)."""
        heard = self._link_heard_ns if path is Path.LINK else self._paths[path].heard_ns
        return now_ns - self._absence.counted_from(max(heard or 0, self.started_ns))

    @property
    def link_heard_ns(self) -> int:
        """When the link last carried a state, or a frame of the other plane while the daemon there
        was heard on any path; later by as much as this daemon did not run since. 0: never."""
        return self._absence.counted_from(heard_ns) if (heard_ns := self._link_heard_ns) else 0

    @property
    def _link_heard_ns(self) -> int:
        heard_ns, said_ns = self._paths[Path.LINK].heard_ns or 0, self._said_ns()
        if self.plane_heard_ns <= heard_ns or not said_ns:
            return heard_ns
        return max(heard_ns, min(self.plane_heard_ns, said_ns + VOUCHED_NS))

    def listens(self, now_ns: int) -> None:
        """Datagrams come from now on: silence before, while the daemon started, tells nothing."""
        self.started_ns, self.listening = now_ns, True
        self.runs(now_ns)

    def listen_anew(self, now_ns: int) -> None:
        """Our plane listens to another pairing from now on."""
        self._bare_since_ns, self.plane_heard_ns = now_ns, 0

    @property
    def frames_until_ns(self) -> int:
        """Until when the link carried frames of the peer's plane, as far as is known.

        The first state behind a silence, or behind a frame, stands for the frame that follows.
        """
        since_ns = max(self.plane_heard_ns, self._bare_since_ns, self.started_ns)
        return self._absence.counted_from(since_ns)

    def hears_plane(self, within_ns: int, now_ns: int) -> bool:
        """Frames of its plane come."""
        return self.plane_heard_ns > 0 and now_ns - self.frames_until_ns <= within_ns

    def unheard_ns(self, now_ns: int) -> int:
        """For how long it has said that it hears no frame of ours."""
        since_ns = self._unheard_since_ns
        return 0 if since_ns is None else now_ns - self._absence.counted_from(since_ns)

    def longest_ns(self, path: Path) -> int:
        """The longest silence of a path since the peer's daemon runs."""
        return self._paths[path].longest_ns

    def long_silences(self, path: Path) -> int:
        """How often a path was silent for longer than `long_ns`, since this daemon runs."""
        return self._paths[path].long

    def away_since_ns(self, now_ns: int) -> int | None:
        """Since when the peer's daemon is known not to run while its host does; else None.

        Hosts answer about once a second at most (`icmp_ratelimit`): an answer holds a while.
        """
        since = [
            view.refused_ns
            for view in self._paths.values()
            if view.refused_ns is not None and now_ns - view.refused_last_ns < REFUSAL_HOLDS_NS
        ]
        if self.state is not None and self.state.leaving:
            since += [v.heard_ns for v in self._paths.values() if v.heard_ns is not None]
        return min(since, default=None)

    def _refuse(self, error: RefusedError) -> None:
        seen = self.refusals.get(error.why, 0)
        self.refusals[error.why] = seen + 1
        if error.why is Refusal.STALE:
            return
        self.last_error = f"ignoring {self.host}: {error}"
        if not seen:
            self.report(self.last_error)
