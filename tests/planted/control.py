# SPDX-License-Identifier: GPL-2.0-only
"""Faults of the control plane and the storage."""

from __future__ import annotations

from tests.planted.mutant import Mutant

PATIENCE = "tests/unit/test_hold_timer.py"
PACE = "tests/unit/test_pace.py"
PROBE = "tests/unit/test_probe.py"
PROBE_PY = "colo_ebpf/control/checkpoint/probe.py"
WATCH = "tests/unit/test_watch.py"
WAITS = "tests/sim/test_waits.py"
PATIENCE_PY = "colo_ebpf/control/checkpoint/hold_timer.py"
PACE_PY = "colo_ebpf/control/checkpoint/pace.py"
WATCH_PY = "colo_ebpf/control/checkpoint/watch.py"
WAITS_PY = "colo_ebpf/control/core/held_answers.py"
ONE_DISK = "tests/unit/test_one_disk.py"
DISKS = "tests/sim/test_disks.py"
FENCING = "tests/unit/test_fencing.py"
ONE_DISK_QEMU = "tests/unit/test_shared_disk.py"
DECIDE_PY = "colo_ebpf/control/decision/decide.py"
OPERATOR_PY = "colo_ebpf/control/decision/operator.py"
CMDLINE_PY = "colo_ebpf/control/qemu/cmdline.py"

MUTANTS = (
    Mutant(
        "a VM whose monitor closed is complained of before its process is gone",
        "colo_ebpf/control/core/facts.py",
        "fit=not self.fitness.complaint(self.is_replica()),",
        "fit=not self.unfit(),",
        DISKS,
    ),
    Mutant(
        "the umask decides whether QEMU's user comes through",
        "colo_ebpf/directories.py",
        "one.chmod(mode | _WAY_THROUGH)",
        "pass",
        "tests/unit/test_directories.py",
    ),
    Mutant(
        "a compiler goes on without its daemon",
        "colo_ebpf/datapath/bpf/compiler.py",
        "    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)\n",
        "",
        "tests/unit/test_startup.py",
    ),
    Mutant(
        "a try registers a key that nobody can take back",
        "colo_ebpf/storage/reservation.py",
        "_REGISTRATION.pack(own, own, 0, 0))",
        "_REGISTRATION.pack(0, own, 0, 0))",
        "tests/unit/test_reservations.py",
    ),
    Mutant(
        "another key of this host's stays",
        "colo_ebpf/storage/reservation.py",
        """        if _conflicts(status):
            status = self._call(_REGISTER, _REGISTRATION.pack(own, own, _IGNORE_KEY, 0))
""",
        "",
        "tests/unit/test_reservations.py",
    ),
    Mutant(
        "who is about to be fenced is given no time to concede",
        DECIDE_PY,
        "fences = s.who.shares_disk or s.fence.when is not FenceWhen.OFF",
        "fences = s.who.shares_disk",
        FENCING,
    ),
    Mutant(
        "a primary fences before it heard why COLO ended",
        DECIDE_PY,
        "soon = ended_ns is not None and ended_ns < s.timing.peer_timeout_ns",
        "soon = False",
        FENCING,
    ),
    Mutant(
        "an idle SVM is waited for",
        PATIENCE_PY,
        "if told.spent == oldest_ns:",
        "if False:",
        PATIENCE,
    ),
    Mutant(
        "an SVM that works is not waited for",
        PATIENCE_PY,
        "if told.watches == oldest_ns:",
        "if False:",
        PATIENCE,
    ),
    Mutant(
        "nothing is doubled",
        PATIENCE_PY,
        "self.doubled = min(self.doubled + 1, _DOUBLED_MOST)",
        "pass",
        WAITS,
    ),
    Mutant(
        "what was doubled stays",
        PATIENCE_PY,
        "self.doubled = max(self.doubled - 1, 0)",
        "pass",
        PATIENCE,
    ),
    Mutant(
        "a load is forgotten",
        PATIENCE_PY,
        "if now_ns - self._loaded_ns < FRESH_NS:",
        "if False:",
        PATIENCE,
    ),
    Mutant(
        "a delayed ACK is an answer",
        PATIENCE_PY,
        "_TIMER_NS = 250 * _MS",
        "_TIMER_NS = 50 * _MS",
        PATIENCE,
    ),
    Mutant(
        "who waits for a processor is idle",
        WATCH_PY,
        "idle = not work.ready and work.since_ns",
        "idle = work.since_ns",
        WATCH,
    ),
    Mutant(
        "it may work for ever",
        WATCH_PY,
        "if idle or work.since_ns(self._first) >= self._worth_ns:",
        "if idle:",
        WATCH,
    ),
    Mutant(
        "a word is heard with every look",
        WAITS_PY,
        "return told.spent not in (0, before) and told.spent",
        "return told.spent != 0 and told.spent",
        WAITS,
    ),
    Mutant(
        "comparing is not tried again by time",
        WAITS_PY,
        "self._say(self.pace.look(now_ns))",
        "pass",
        WAITS,
    ),
    Mutant(
        "an SVM that is slow after a load differs",
        WAITS_PY,
        "(one.cause is Cause.HOLD_AGE and self._idle)",
        "one.cause is Cause.HOLD_AGE",
        WAITS,
    ),
    Mutant(
        "a try that is worse is kept",
        PACE_PY,
        "now.beats(before, _BETTER)",
        "True",
        PACE,
    ),
    Mutant(
        "an idle SVM is so for one answer only",
        PATIENCE_PY,
        'return IDLE if oldest_ns + _COVERS_NS <= self._idle_ns else ""',
        'return ""',
        PATIENCE,
    ),
    Mutant(
        "an SVM that was idle is so for ever",
        PATIENCE_PY,
        'return IDLE if oldest_ns + _COVERS_NS <= self._idle_ns else ""',
        'return IDLE if self._idle_ns else ""',
        PATIENCE,
    ),
    Mutant(
        "a try is judged by another load",
        PACE_PY,
        "return max(self._rest_until_ns, last_ns + _NO_LOAD_NS + 1)",
        "return self._rest_until_ns",
        PACE,
    ),
    Mutant(
        "equal answers end no way",
        PACE_PY,
        "due = rested or self.probe.enough or",
        "due = rested or",
        PACE,
    ),
    Mutant(
        "a checkpoint of a try is put off",
        PACE_PY,
        "return not self._tries and self.probe.puts_off",
        "return self.probe.puts_off",
        PACE,
    ),
    Mutant(
        "a checkpoint in vain is put off as often",
        PROBE_PY,
        "self._rest = min(2 * self._rest, _REST_MOST)",
        "pass",
        PROBE,
    ),
    Mutant(
        "what differs is waited for",
        PROBE_PY,
        "self._until_ns = 0\n        return",
        "return",
        PROBE,
    ),
    Mutant(
        "equal answers need not come in a row",
        PROBE_PY,
        "self._same, self._since_ns = 0, None",
        "self._since_ns = None",
        PROBE,
    ),
    Mutant(
        "a hopeless try goes on",
        PACE_PY,
        "return now is not None and before is not None and before.beats(now, 1 / _HOPELESS)",
        "return False",
        PACE,
    ),
    Mutant(
        "pauses have no bound",
        PACE_PY,
        "if cycle.pause_ns > self.pause_ns:",
        "if False:",
        PACE,
    ),
    Mutant(
        "a secondary writes to the shared disk before the loser is off",
        DECIDE_PY,
        "    if s.who.shares_disk:\n        return _activate(s, r, State.CLAIMED, Mode.WITHHOLD)\n",
        "",
        ONE_DISK,
    ),
    Mutant(
        "a primary ruins the shared disk for a claim that may go back",
        DECIDE_PY,
        "if ContinueAlone in s.done or s.who.shares_disk:",
        "if ContinueAlone in s.done:",
        ONE_DISK,
    ),
    Mutant(
        "two VMs write to a shared disk in a switchover",
        OPERATOR_PY,
        "    if s.who.shares_disk:\n",
        "    if False:\n",
        ONE_DISK,
    ),
    Mutant(
        "a read may overtake the write that ruins it",
        CMDLINE_PY,
        ",copy-on-read=on",
        "",
        ONE_DISK_QEMU,
    ),
    Mutant(
        "a load is waited for after COLO was left",
        "colo_ebpf/control/core/facts.py",
        "return self._is_replica(vm) and not self._left",
        "return self._is_replica(vm)",
        "tests/unit/test_left_colo.py",
    ),
    Mutant(
        "a host goes on alone with a disk that the other one may write to",
        DECIDE_PY,
        "return fencing.reserved(s, fencing.before_solo(s, r, activation))",
        "return fencing.before_solo(s, r, activation)",
        ONE_DISK,
    ),
    Mutant(
        "a VM is started from a disk that the other one may write to",
        DECIDE_PY,
        "return fencing.reserved(s, start)",
        "return start",
        ONE_DISK,
    ),
    Mutant(
        "the other host keeps its registration",
        "colo_ebpf/storage/reservation.py",
        "        disk.preempt(own, other)\n",
        "",
        "tests/unit/test_reservations.py",
    ),
    Mutant(
        "what the guest writes meanwhile is called different",
        "colo_ebpf/storage/sample.py",
        "if sector == suspects[place.offset_bytes]:",
        "if True:",
        "tests/storage/test_sample.py",
    ),
    Mutant(
        "what the last secondary's disk refused is held against the next pair",
        "colo_ebpf/control/core/checkpoints.py",
        'self.fitness, self.guest, self.peer_disk = Fitness(), Guest(), ""',
        "self.fitness, self.guest = Fitness(), Guest()",
        "tests/sim/test_disks.py",
    ),
    Mutant(
        "what QEMU says late is held against the next pair",
        "colo_ebpf/control/decision/solo.py",
        "_SAID_LATE_NS = 1_100_000_000",
        "_SAID_LATE_NS = 0",
        "tests/sim/test_disks.py",
    ),
    Mutant(
        "a pair that is well never learns what became of a swap",
        OPERATOR_PY,
        "return reasserted(s, r, paired)",
        "return paired",
        "tests/sim/test_planned.py",
    ),
    Mutant(
        "the secondary of a pair that is well never learns what became of its bid",
        DECIDE_PY,
        "    return reasserted(s, r, paired)\n",
        "    return paired\n",
        "tests/unit/test_operator.py",
    ),
)
