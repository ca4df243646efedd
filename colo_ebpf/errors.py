# SPDX-License-Identifier: GPL-2.0-only
"""The one tree of errors.

::

    ColoError
    ├── ConfigError        a value in the configuration file
    ├── DatapathError      maps, programs, links
    │   ├── LoadError      a program does not compile or the verifier refuses it
    │   ├── VerifierError  the kernel's verifier says why it refuses one
    │   └── AttachError    a device, filter or route could not be made
    ├── VmError            the QEMU process
    │   └── QmpError       one command on its monitor
    ├── StorageError       an image or an NBD export
    │   └── NoDigestsError     the peer makes none of its image
    ├── ArbiterError       the record, or the place that keeps it
    │   ├── SwapUnknownError   whether the record was written is not known
    │   └── UnansweredError    no endpoint of etcd answered
    ├── PeerError          a message of the other host
    │   └── RefusedError       a datagram that is not believed
    ├── FenceError         the command that turns the other host off
    │   └── CannotFenceError   it says that it never can
    ├── WatchdogError      the device that resets this host
    ├── ControlError       the daemon's own socket and files
    │   ├── NoDaemonError      nobody answers on the socket
    │   ├── NotInTimeError     asked for, and not done or not answered in time
    │   └── NotInstalledError  a package that a command needs
    ├── LabError           the lab's namespaces and processes
    └── BenchError         a benchmark that could not be run, or results that cannot be read

A message says what failed, on which object, and what to do about it. Foreign exceptions are
wrapped where they enter (``raise QmpError(...) from e``).
"""

from __future__ import annotations

import enum


class ColoError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(ColoError):
    """A configuration value is missing, unknown or out of range."""


class DatapathError(ColoError):
    """The kernel side: maps, programs, links."""


class LoadError(DatapathError):
    """A BPF program did not compile or was refused by the verifier; carries the log."""


class VerifierError(DatapathError):
    """The verifier refuses a program; its log is the message."""


class AttachError(DatapathError):
    """A device, filter, address or route could not be made or removed."""


class VmError(ColoError):
    """The QEMU process: start, adoption, death, a state that does not allow the step."""


class QmpError(VmError):
    """One QMP command failed, timed out or was answered with something unexpected."""


class StorageError(ColoError):
    """An image or an export is missing, in use, of the wrong size or unreadable."""


class NoDigestsError(StorageError):
    """The digests that are missing do not come. What was copied so far is right."""


class ArbiterError(ColoError):
    """The arbiter's record is missing, malformed or cannot be read or written."""


class SwapUnknownError(ArbiterError):
    """The outcome of a swap could not be learnt in time; read back by nonce."""


class UnansweredError(ArbiterError):
    """No endpoint answered. `sent`: the request may be, or may yet be, carried out."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class PeerError(ColoError):
    """A message of the peer is malformed, not authentic, or speaks of something else."""


class Refusal(enum.Enum):
    """Why a datagram was not believed."""

    MALFORMED = "malformed datagrams: something else sends to the heartbeat port"
    VERSION = "another protocol version: run the same version of colo-ebpf on both hosts"
    KEY = "wrong key: the key files of the two hosts differ"
    VM = "another VM's name: [vm] name must be the same on both hosts"
    HOST = "another host's name: [peer] name must be the other host's [host] name"
    STALE = "replayed or overtaken datagrams"


class RefusedError(PeerError):
    """A datagram that was not believed, and why."""

    def __init__(self, why: Refusal, detail: str = "") -> None:
        super().__init__(why.value + (f" ({detail})" if detail else ""))
        self.why = why


class FenceError(ColoError):
    """The command that turns the other host off failed; it may be tried again."""


class CannotFenceError(FenceError):
    """The command said that this host cannot be fenced: trying again is of no use."""


class WatchdogError(ColoError):
    """The watchdog device is missing, in use, or does not do what is asked of it."""


class ControlError(ColoError):
    """The daemon's control socket, lock or state files."""


class NoDaemonError(ControlError):
    """No daemon answers on the control socket."""


class NotInTimeError(ControlError):
    """What was asked of a daemon was not done, or not answered, in time; it may be done yet."""


class NotInstalledError(ControlError):
    """What a command needs is not installed; asking again changes nothing."""


class LabError(ColoError):
    """The lab: namespaces, processes, guest."""


class BenchError(ColoError):
    """A benchmark could not be run, or its results not be read."""
