# SPDX-License-Identifier: GPL-2.0-only
"""What a guest or its clients can have the control plane do, however hard they try.

The bounds of the data plane: `tests/bpf/test_flow_table.py` (connections), `test_golden.py` (the
hold store), `tests/unit/test_files.py` (what QEMU and the guest write).
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.checkpoint.primary import OF_AN_EPOCH, Announce, Limits, PrimaryCheckpoints
from colo_ebpf.control.core.guest_events import Guest
from colo_ebpf.model import Phase, Turn, VmEvent, VmEventKind

MS, S = 1_000_000, 1_000_000_000
LIMITS = Limits(arm_ns=200 * MS, checkpoint_ns=10_000 * MS, longest_epoch_ns=60_000 * MS)
_CAUSES = sorted(OF_AN_EPOCH, key=lambda one: one.value)


def test_any_number_of_causes_is_one_checkpoint() -> None:
    """As found: a frame with a newer tag, or an odd segment, asked for one each."""
    machine = PrimaryCheckpoints(LIMITS)
    machine.begin(Turn(5, Phase.OPEN), 0, restarted=False)
    done: list[object] = []
    for at_ns in range(0, 100 * MS, 10_000):
        for cause in _CAUSES:
            machine.ask(cause, at_ns, 5)
        done += machine.look(at_ns, taken=0, armed=0, listening=True)
    assert done == [Announce(6)]
    assert machine.pending == set(_CAUSES), "none is kept twice"


def test_what_was_asked_for_in_a_past_epoch_asks_for_nothing() -> None:
    machine = PrimaryCheckpoints(LIMITS)
    machine.begin(Turn(6, Phase.OPEN), 0, restarted=False)
    for cause in _CAUSES:
        machine.ask(cause, 1, 5)
    assert machine.look(2, taken=0, armed=0, listening=True) == []


@given(
    st.lists(st.sampled_from([VmEventKind.PANICKED, VmEventKind.RESET]), min_size=1, max_size=300),
    st.integers(0, 50),
)
def test_a_guest_that_panics_and_resets_without_end_makes_few_lines(
    kinds: list[VmEventKind], every_ms: int
) -> None:
    guest = Guest()
    told = [
        text
        for n, kind in enumerate(kinds)
        if (text := guest.hear(VmEvent(kind, n * every_ms * MS, {"guest": True}), loads=False))
    ]
    seconds = len(kinds) * every_ms / 1000
    assert len([text for text in told if "panicked" in text]) <= 1 + seconds / 10
    assert len([text for text in told if text == "the guest reboots"]) <= 1 + seconds / 2


def test_a_panic_is_told_again_later() -> None:
    guest = Guest()
    told = [guest.hear(VmEvent(VmEventKind.PANICKED, at, {}), loads=False) for at in (0, S, 11 * S)]
    assert [bool(text) for text in told] == [True, False, True]
    assert guest.panicked
