# SPDX-License-Identifier: GPL-2.0-only
"""Everything that `decide` can say, found by asking it; the tables of docs/reference/states.md.

`python -m tests.states` writes them. Snapshots are drawn with a fixed seed from the values that
matter to a decision, so the tables change only when the code does.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.control.decision import actions, record
from colo_ebpf.control.decision import snapshot as values
from colo_ebpf.control.decision.actions import Decision, State, Task
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.decision.snapshot import Failure, FenceFacts, FenceWhen, Snapshot
from colo_ebpf.control.peer.state import Answer, PeerState
from colo_ebpf.errors import ArbiterError
from colo_ebpf.model import Endpoints, Mode, Settled, VmHealth, VmRole
from tests.deadlines import DEADLINES

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "states.md"
DRAWS = 120_000
_MS = 1_000_000
_NOW = 10_000_000 * _MS
HERE, PEER = "HERE/00000000000000aa", "PEER/00000000000000bb"
FRESH, OLD = "HERE/00000000000000ff", "HERE/0000000000000001"
_TO = Endpoints("192.0.2.9", 1, 2)
_FENCE = actions.Fence("PEER", 5, "REASON")


def _records() -> tuple[Record | None, ...]:
    """Of every kind, at both hosts."""
    starts = record.start(record.cold("HERE"), HERE)
    here = record.activate(starts)
    peer = record.activate(record.start(record.cold("PEER"), PEER))
    first, second = record.pair(here, PEER, 7), record.pair(peer, HERE, 7)
    claims = [record.claim(pair, winner) for pair in (first, second) for winner in (HERE, PEER)]
    conceded = [record.concede(pair, loser) for pair in (first, second) for loser in (HERE, PEER)]
    overlaid = [record.activate(one) for one in claims]
    elsewhere = record.activate(record.start(record.cold("OTHER"), "OTHER/00000000000000cc"))
    colds = (record.cold("HERE"), record.cold("PEER"))
    given = [record.hand_over(pair) for pair in (first, second)]
    offs = [record.power_off(here, 1_700_000_000), record.power_off(peer, 0)]
    return (
        None,
        *colds,
        starts,
        here,
        peer,
        first,
        second,
        *claims,
        *given,
        *offs,
        *conceded,
        *overlaid,
        elsewhere,
    )


RECORDS = _records()


class _Draw:
    """One random snapshot; what is usual is drawn more often."""

    def __init__(self, rng: random.Random, late: random.Random, later: random.Random) -> None:
        """`late` and `later`: for what was added then, so that all else is drawn as before."""
        self._rng, self._late, self._later = rng, late, later
        self._record = rng.choice(RECORDS)
        self._rare = rng.choice((0.15, 0.03))  # many oddities at once, or hardly any

    def _seldom(self) -> bool:
        return self._rng.random() < self._rare

    def _age_ns(self) -> int:
        return self._rng.choice((5, 5, 5, 5, 300, 900, 40_000)) * _MS

    def _at_ns(self) -> int:
        return _NOW - self._age_ns()

    def snapshot(self) -> Snapshot:
        """All of it."""
        rng, r = self._rng, self._record
        task = self._task()
        return Snapshot(
            now_ns=_NOW,
            who=values.Who(
                "v",
                "HERE",
                "PEER",
                "192.0.2.9",
                not self._seldom(),
                self._late.random() < 0.5,
                reserves=self._late.random() < 0.2,
                compatibility={"NAME": "A"},
            ),
            timing=DEADLINES,
            record=r,
            record_since_ns=self._at_ns(),
            confirmed=rng.random() < 0.6,
            pending=self._pending(),
            read_error="ERROR" if self._seldom() else "",
            arbiter_error="",
            vm=self._vm(task),
            peer=self._peer(task),
            checkpoints=self._checkpoints(),
            mode=self._mode(task),
            mode_since_ns=self._at_ns(),
            plane_hears=not self._seldom(),
            public=not self._seldom(),
            task=task,
            done=frozenset(k for k in actions.Step.__args__ if rng.random() < 0.6),
            failure=self._failure(),
            yanked_ns=rng.choice((None, self._at_ns())),
            offsets=rng.choice((0, 0, 12)),
            rest_until_ns=rng.choice((0, 0, 0, _NOW + _MS)),
            rest_why="REASON",
            last_read_ns=self._at_ns(),
            fresh_vni=9,
            fresh_instance=FRESH,
            request=self._request(),
            paused=self._seldom(),
            fence=self._fence(),
        )

    def _mode(self, task: Task | None) -> Mode:
        pairs = task is not None and task.kind is actions.TaskKind.PAIR
        return Mode.PAIRING if pairs and self._rng.random() < 0.5 else self._rng.choice(tuple(Mode))

    def _pending(self) -> Record | None:
        return self._rng.choice(RECORDS) if self._seldom() else None

    def _task(self) -> Task | None:
        rng = self._rng
        kind = rng.choice(tuple(actions.TaskKind))
        theirs = FRESH if kind is actions.TaskKind.JOIN else rng.choice(("", PEER))
        return rng.choice((None, Task(kind, 9, theirs)))

    def _vm(self, task: Task | None) -> values.VmFacts | None:
        rng, r = self._rng, self._record
        if self._seldom():
            return None
        named = [one for one in (r.owner, r.other) if one.startswith("HERE/")] if r else []
        made = [task.instance] if task and task.kind is actions.TaskKind.JOIN else []
        instance = rng.choice([*(named * 4), *(made * 2), OLD])
        closing = self._later.random() < self._rare
        return values.VmFacts(
            instance,
            rng.choice(tuple(VmRole)),
            alive=not self._seldom(),
            settled=rng.choice((Settled.CURRENT, Settled.CURRENT, *Settled)),
            fit=not self._seldom() and not closing,
            closing=closing,
            clean=not self._seldom(),
            endpoints=_TO,
            colo_exit_ns=rng.choice((None, self._at_ns())),
            off_at_s=rng.choice((0, 1_700_000_000)) if self._seldom() else None,
            waits_ns=self._late.choice((None,) * 8 + (_NOW, _NOW - 900 * _MS)),
        )

    def _peer(self, task: Task | None) -> values.PeerFacts:
        away = self._at_ns() if self._seldom() else None
        state = None if self._seldom() else self._peer_state(task)
        bare_ns, unheard_ns = (self._age_ns() if self._seldom() else 0 for _ in ("here", "there"))
        return values.PeerFacts(
            state, self._age_ns(), self._age_ns(), away, bare_ns=bare_ns, unheard_ns=unheard_ns
        )

    def _peer_state(self, task: Task | None) -> PeerState:
        rng, r = self._rng, self._record
        token = "a" * 16
        return PeerState(
            vm="v",
            host="PEER",
            boot="x",
            state=rng.choice(tuple(State)).value if self._seldom() else self._usual_state(),
            generation=r.generation + self._seldom() if r else 1,
            instance=PEER if not self._seldom() else "PEER/0000000000000002",
            health=VmHealth.RUNNING if not self._seldom() else rng.choice(tuple(VmHealth)),
            fit=not self._seldom(),
            want=rng.choice(("", "WANT")),
            vni=task.vni if task and not self._seldom() else rng.choice((0, 9)),
            endpoints=rng.choice((None, _TO, _TO)),
            offsets_have=rng.choice((0, 12)),
            hears=not self._seldom(),
            compatibility={"NAME": "B"} if self._seldom() else {},
            last_words="WORDS" if self._seldom() else "",
            leaving=self._seldom(),
            answer=Answer(token, False, "ANSWER") if self._seldom() else None,
        )

    def _usual_state(self) -> str:
        r = self._record
        paired = r is not None and r.kind is record.Kind.PAIRED
        states = (State.PRIMARY, State.SECONDARY) if paired else (State.STANDBY, State.JOINING)
        return self._rng.choice(states).value

    def _checkpoints(self) -> values.CheckpointFacts:
        rng = self._rng
        loaded = rng.choice((None, self._loaded()))
        broken = "REASON" if self._seldom() else ""
        return values.CheckpointFacts(broken, loaded, self._at_ns(), idle=not self._seldom())

    def _loaded(self) -> Loaded:
        armed = not self._seldom()
        return Loaded(1, self._at_ns(), _NOW, 0, 0, armed=armed, cause=Cause.MISMATCH)

    def _failure(self) -> Failure | None:
        rng = self._rng
        if rng.random() < 0.6:
            return None
        step = rng.choice(
            (
                actions.Swap(record.cold("HERE"), record.cold("HERE")),
                actions.StartVm(VmRole.PRIMARY, HERE),
                actions.Synchronise(_TO),
                actions.EnterColo(_TO),
                actions.ContinueAlone(),
                actions.TakeOver(),
                actions.Yank(),
            )
        )
        return Failure(step, "ERROR", self._at_ns())

    def _request(self) -> values.Request | None:
        rng, r = self._rng, self._record
        if rng.random() < 0.6 or r is None:
            return None
        overrides = rng.choice((0, 0, r.generation, r.generation - 1, 99))
        winner = rng.choice((HERE, PEER))
        withheld_ns = rng.choice((None, self._at_ns()))
        starts = r.kind is record.Kind.OFF or self._seldom()
        return values.Request(
            "a" * 16,
            self._at_ns(),
            FRESH if starts else winner,
            rng.random() < 0.5,
            withheld_ns,
            0 if starts else max(0, overrides),
            starts,
        )

    def _fence(self) -> FenceFacts:
        rng = self._rng
        failed = self._seldom()
        return FenceFacts(
            rng.choice(tuple(FenceWhen)),
            reason="REASON",
            due=_FENCE if self._seldom() else None,
            failures=rng.choice((1, 5)) if failed else 0,
            error="ERROR" if failed else "",
            failed_ns=self._at_ns(),
            hopeless=failed and self._seldom(),
        )


def decisions(draws: int = DRAWS) -> Iterator[tuple[Snapshot, Decision]]:
    """What is decided for snapshots drawn at random, the same ones every time."""
    drawn = [random.Random(seed) for seed in (1, 2, 3)]
    for _ in range(draws):
        snapshot = _Draw(*drawn).snapshot()
        try:
            yield snapshot, decide(snapshot)
        except ArbiterError:
            continue  # a move that is not legal: no history leads to this snapshot


@dataclass
class Said:
    """One sentence of one state, and what goes with it."""

    modes: set[str] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)


Table = dict[State, dict[str, Said]]
_HIDDEN = (
    (re.compile(r"(VM )?(HERE|PEER|OTHER)/[0-9a-f]{16}"), r"VM of \2"),
    (re.compile(r"; output stays withheld: ERROR$|; PEER could not be fenced: ERROR$"), ""),
    (re.compile(r"; the record cannot be read: ERROR$"), ""),
    (re.compile(r"\d+"), "N"),
)
_DESCRIBED = sorted({r.describe() for r in RECORDS if r}, key=len, reverse=True)


def template(sentence: str) -> str:
    """The sentence without what differs from case to case."""
    for known in _DESCRIBED:
        sentence = sentence.replace(known, "RECORD")
    for pattern, instead in _HIDDEN:
        sentence = pattern.sub(instead, sentence)
    return sentence


def table(draws: int = DRAWS) -> Table:
    """All sentences of each state. Where the peer knows a newer record, that is read: left out."""
    found: Table = {state: defaultdict(Said) for state in State}
    for s, d in decisions(draws):
        newer = s.peer.state is not None and s.record is not None
        if newer and s.peer.state.generation > s.record.generation:  # type: ignore[union-attr]
            continue
        said = found[d.state][template(d.sentence)]
        said.modes.add("as it is" if d.mode is None else d.mode.name.lower())
        said.steps.add("none" if d.step is None else type(d.step).__name__)
    return found


def rows(found: Table) -> list[str]:
    """The table of sentences in Markdown."""
    lines = ["| state | sentence | mode | step |", "|---|---|---|---|"]
    for state, sentences in found.items():
        for sentence, said in sorted(sentences.items()):
            modes, steps = (", ".join(sorted(names)) for names in (said.modes, said.steps))
            lines.append(f"| `{state.value}` | {sentence} | {modes} | {steps} |")
    return lines


def moves() -> set[tuple[str, str]]:
    """(from, to) of the table of moves in the document."""
    lines = between(DOCUMENT.read_text(), "moves").splitlines()
    cells = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in lines[2:]]
    return {(old, new) for old, to in cells for new in re.findall(r"[a-z]+", to)}


def move_rows(found: Iterable[tuple[str, str]]) -> list[str]:
    """The table of moves in Markdown."""
    lines = ["| from | to |", "|---|---|"]
    order = [state.value for state in State]
    known = set(found)
    for old in order:
        to = [f"`{new}`" for new in order if (old, new) in known]
        lines.append(f"| `{old}` | {', '.join(to)} |")
    return lines


def _markers(part: str) -> tuple[str, str]:
    return f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->"


def between(text: str, part: str) -> str:
    """A table of a document."""
    begin, end = _markers(part)
    return text.partition(begin)[2].partition(end)[0]


def with_part(text: str, part: str, lines: list[str]) -> str:
    """The document with this table in its place."""
    begin, end = _markers(part)
    head, _, rest = text.partition(begin)
    return f"{head}{begin}{chr(10).join(lines)}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_part(DOCUMENT.read_text(), "sentences", rows(table())))
