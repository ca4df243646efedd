# SPDX-License-Identifier: GPL-2.0-only
"""What each key of the configuration does, for the manual page and the reference. Text alone.

By table and key, as they stand in the file. A test holds it in step with `config`.
"""

from __future__ import annotations

EFFECTS: dict[str, dict[str, str]] = {
    "vm": {
        "name": "The VM's name, the same on both hosts. Link device and ports follow from it.",
        "kernel": "A kernel to start. Empty: the VM boots from its first disk.",
        "initrd": "The initial RAM disk of `kernel`.",
        "append": "The command line of `kernel`.",
        "memory-mib": "The guest's memory. The secondary's host needs it twice.",
        "cpus": "The guest's processors.",
        "accel": "`auto` boots a small guest to find out whether KVM works, and else uses TCG.",
        "machine": "QEMU's machine type. `q35` needs QEMU 11.",
        "cpu": "QEMU's name of a CPU model. Empty: the host's under KVM, all that TCG can do else.",
        "firmware": "A flash image of UEFI code. Empty: SeaBIOS.",
        "firmware-vars": "This VM's own copy of the UEFI variables; comes with `firmware`.",
        "uuid": "The UUID of the SMBIOS. Empty: none.",
        "clock": "What the hardware clock shows: `localtime` for Windows.",
        "rng": "A virtio-rng. Guests that answer with its bytes differ more often.",
        "vga": "A display, by VNC on `qemu/vnc.sock` in the run directory.",
        "qemu": "The QEMU program.",
        "user": "Who QEMU is: a name or a number. `root` leaves it unconfined.",
        "extra-args": "More arguments of QEMU. The same on both hosts, but for paths.",
        "preload": "A library that QEMU is started with. The lab uses it for TCG.",
    },
    "vm.nic": {
        "mac": "The guest's MAC address. The same on both hosts.",
        "any-mac": "Whether the guest may have other MAC addresses, too, as one with a bridge.",
        "tap": "The tap of this card. The daemon makes it.",
        "bridge": "The Linux bridge where the clients are. You make it.",
        "slot": "Its place on the PCI bus, 2 to 31. 0: QEMU chooses.",
        "vlan": "Of the tap, on a bridge that filters VLANs: frames without a tag are in it. 0:"
        " the bridge's `vlan_default_pvid`.",
        "queues": "Pairs of queues. More than 1: as many processors of the guest share the card.",
        "vhost": "Frames are carried by the kernel (vhost-net), not by QEMU.",
        "trunk": "VLANs that the guest tags itself, on such a bridge.",
        "mtu": "Of the tap, and what the guest is told. The link needs 88 more, 108 over IPv6.",
    },
    "vm.disk": {
        "path": "The image: a file or a block device. The same size on both hosts.",
        "overlay-dir": "For what is written since the last checkpoint. Of this VM alone; in memory"
        " at best. Each disk has one, but for a readonly one.",
        "bus": "What the guest has it on. On `virtio-scsi` all such disks share one controller.",
        "readonly": "The guest cannot write it, and it is not replicated: both hosts need the same"
        " raw image. On `virtio-scsi`: a CD-ROM.",
        "format": "The format of the image.",
        "x-shared": "Being tried out. Both hosts reach the same disk: nothing is copied. Raw, and"
        ' with `fence.reservation`, or `fence.when = "before-solo"`.',
        "sector-bytes": "What the guest sees as a sector. The same on both hosts.",
        "boot-order": "1 is tried first. 0: in the order of their tables.",
        "serial": "What the guest finds below `/dev/disk/by-id`. Empty: none.",
        "slot": "Its place on the PCI bus, 2 to 31. 0: QEMU chooses.",
        "overlay-limit-mib": "A checkpoint is taken at half of it. 0: a quarter of what is free,"
        " shared by the disks.",
    },
    "host": {
        "name": "This host's name, as the record has it.",
        "run-dir": "Sockets, logs and pids of this VM. May be lost at a reboot.",
        "state-dir": "What has to outlive a reboot: the highest generation, a pause.",
        "bpffs": "Where the BPF file system is mounted. The maps are pinned below it.",
        "cache-dir": "What was compiled, and whether KVM works. For all VMs of the host.",
    },
    "peer": {
        "name": "The other host's name, as its file has it.",
        "link-address": "The other host's address on the link.",
        "management-address": "The other host's address on the management path.",
        "key-file": "The pair's secret, the same on both, mode 0600: heartbeats and the link's keys"
        " follow from it. 16 bytes or more.",
    },
    "link": {
        "address": "This host's address on the link. IPv4 or IPv6, as the peer's.",
        "underlay": "The network device of the link.",
        "security": "What seals the link. `auto`: the kernel's IPsec, else its WireGuard.",
        "device": "The tunnel that the daemon makes. Empty: from the VM's name.",
        "vxlan-port": "UDP, for frames and beacons. Left out: from the VM's name.",
        "nbd-port": "TCP, for the disks' writes. Left out: from the VM's name.",
        "migration-port": "TCP, for checkpoints. Left out: from the VM's name.",
        "heartbeat-port": "UDP, for heartbeats on both paths. Left out: from the VM's name.",
        "wireguard-port": "UDP, all of the link by WireGuard. Left out: from the VM's name.",
        "disk-rate-mib-s": "Bounds the copy of all disks to a new replica. 0: no bound.",
        "memory-rate-mib-s": "Bounds the copy of the memory to a new replica. 0: no bound.",
    },
    "management": {
        "address": "This host's address on the second path. IPv4 or IPv6, as the peer's.",
    },
    "arbiter": {
        "kind": "Where the record is kept: in a directory, or in an etcd cluster.",
        "path": "With `file`: a directory that both hosts reach.",
        "endpoints": "With `etcd`: `https://HOST:PORT` of each member of one cluster.",
        "prefix": "With `etcd`: the record's key is `<prefix>/<vm>/record`.",
        "ca-file": "With `etcd`: the CA that signed the servers' certificates.",
        "cert-file": "With `etcd`: this host's client certificate; comes with `key-file`.",
        "key-file": "With `etcd`: its key, without a passphrase.",
    },
    "start": {
        "role": "Which host starts a VM that never ran. Later the record says so.",
        "realtime-priority": "The daemon's real-time priority. 0: none.",
    },
    "timing": {
        "heartbeat-ms": "Time between two heartbeats or beacons. At most a third of"
        " `link-timeout-ms`.",
        "peer-timeout-ms": "A peer that is silent on both paths for so long counts as dead.",
        "link-timeout-ms": "Nothing leaves the primary once the link was silent for so long. Below"
        " `peer-timeout-ms`.",
        "compare-timeout-ms": "The shortest time that an answer waits for a VM that works on it.",
        "arm-timeout-ms": "How long the primary waits until the secondary has confirmed a"
        " checkpoint's epoch.",
        "longest-epoch-ms": "A checkpoint is taken after so long, whatever the VMs do.",
        "qmp-timeout-ms": "For a command of QEMU that should answer at once.",
        "hang-timeout-ms": "A QEMU that does not answer for so long, out of band, hangs.",
        "checkpoint-timeout-ms": "For one checkpoint, from its trigger until it is loaded.",
        "daemon-grace-ms": "How long a pair whose VMs are well waits for the other host's daemon.",
        "arbiter-timeout-ms": "For a whole request to the arbiter.",
        "start-timeout-ms": "For QEMU's start, and for a migration without progress.",
        "sync-timeout-ms": "For a copy of the disks without progress.",
    },
    "checkpoint": {
        "mode": "`compare`: when the VMs differ. `periodic`: as soon as output waits. `auto`:"
        " whichever lets answers wait less.",
        "period-ms": "With `periodic`: time between two checkpoints while output waits.",
        "longest-wait-ms": "No answer waits longer for a VM that is known to work on it.",
        "max-pause-ms": "Epochs are made shorter until a checkpoint pauses the VM no longer. 0: no"
        " bound.",
    },
    "datapath": {
        "flows": "TCP connections at a time. Memory is taken as they come, 1.4 KB each.",
        "hold-mib": "Room for frames that wait, taken at the start. It is rounded down to a power"
        " of two of frames: 128 are 32,768 frames of MTU 1500, in 80 MB.",
        "datagram-buckets": "Buckets of the table of datagrams; a power of two.",
        "hooks": "What holds the programs. `auto`: TCX links (Linux 6.6), else clsact filters."
        " `tcx` insists.",
    },
    "fence": {
        "command": "The program that turns the other host off, and its arguments. No shell.",
        "reservation": "The host that may write reserves the shared disks, so that they refuse what"
        " the other one writes. SCSI, NVMe or multipath; Linux 6.6.",
        "when": "`before-solo`: before anything leaves. `after-solo`: while the VM serves.",
        "timeout-ms": "The command is killed after so long, and has failed.",
    },
    "notify": {
        "command": "The program that is told of each change of state. No shell. Empty: none.",
        "timeout-ms": "The command is killed after so long.",
    },
    "watchdog": {
        "device": "The watchdog device that resets this host. Empty: none.",
        "timeout-s": "The host is reset if the daemon hangs for so long. Longer than a restart"
        " takes.",
    },
}
