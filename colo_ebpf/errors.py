# SPDX-License-Identifier: GPL-2.0-only
"""The one tree of errors.

::

    ColoError
    ├── ConfigError        a value in the configuration file
    ├── DatapathError      maps, programs, links
    │   ├── LoadError      a program does not compile or the verifier refuses it
    │   └── AttachError    a device, filter or route could not be made
    ├── VmError            the QEMU process
    │   └── QmpError       one command on its monitor
    ├── StorageError       an image or an NBD export
    ├── ArbiterError       the record, or the place that keeps it
    ├── PeerError          a message of the other host
    ├── FenceError         the command that turns the other host off
    │   └── CannotFenceError   it says that it never can
    ├── WatchdogError      the device that resets this host
    ├── ControlError       the daemon's own socket and files
    ├── LabError           the lab's namespaces and processes
    └── BenchError         a benchmark that could not be run, or results that cannot be read

A message says what failed, on which object, and what to do about it. Foreign exceptions are
wrapped where they enter (``raise QmpError(...) from e``).
"""


class ColoError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(ColoError):
    """A configuration value is missing, unknown or out of range."""


class DatapathError(ColoError):
    """The kernel side: maps, programs, links."""


class LoadError(DatapathError):
    """A BPF program did not compile or was refused by the verifier; carries the log."""


class AttachError(DatapathError):
    """A device, filter, address or route could not be made or removed."""


class VmError(ColoError):
    """The QEMU process: start, adoption, death, a state that does not allow the step."""


class QmpError(VmError):
    """One QMP command failed, timed out or was answered with something unexpected."""


class StorageError(ColoError):
    """An image or an export is missing, in use, of the wrong size or unreadable."""


class ArbiterError(ColoError):
    """The arbiter's record is missing, malformed or cannot be read or written."""


class PeerError(ColoError):
    """A message of the peer is malformed, not authentic, or speaks of something else."""


class FenceError(ColoError):
    """The command that turns the other host off failed; it may be tried again."""


class CannotFenceError(FenceError):
    """The command said that this host cannot be fenced: trying again is of no use."""


class WatchdogError(ColoError):
    """The watchdog device is missing, in use, or does not do what is asked of it."""


class ControlError(ColoError):
    """The daemon's control socket, lock or state files."""


class LabError(ColoError):
    """The lab: namespaces, processes, guest."""


class BenchError(ColoError):
    """A benchmark could not be run, or its results not be read."""
