# SPDX-License-Identifier: GPL-2.0-only
"""What `colo-ebpf config example` prints: a file that passes every check."""

from __future__ import annotations

EXAMPLE = """\
# One VM on this host. The same file with the host's own names and addresses goes to the other.

[vm]
name = "web"
memory-mib = 2048
cpus = 1
accel = "auto"                        # auto boots once to find out whether KVM works
kernel = "/var/lib/colo-ebpf/vmlinuz"
append = "root=/dev/vda1"
user = "colo-qemu"                    # who its QEMU is; one for each VM keeps VMs apart, too

[[vm.nic]]
mac = "52:54:00:12:34:56"
tap = "tapweb"
bridge = "br0"                        # where the clients are
mtu = 1500

[[vm.disk]]
path = "/var/lib/colo-ebpf/web.raw"   # or a block device; the same size on both hosts
overlay-dir = "/dev/shm/colo-ebpf/web" # this VM's alone: writes since the last checkpoint
overlay-limit-mib = 0                 # a checkpoint at half of it; 0: a quarter of what is free
format = "raw"

[host]
name = "a"
run-dir = "/run/colo-ebpf/web"
state-dir = "/var/lib/colo-ebpf/web"

[peer]
name = "b"
link-address = "192.0.2.2"            # IPv4 or IPv6, as [link] and [management] have it
management-address = "198.51.100.2"
key-file = "/etc/colo-ebpf/key"       # 16 bytes or more, the same on both hosts, mode 0600

[link]
address = "192.0.2.1"
underlay = "eth1"                     # its MTU: the guest's plus 88 or more, 108 with IPv6
security = "auto"                     # IPsec of the kernel's, or WireGuard (MTU: plus 130, 150);
                                      # "none": anybody on the way reads it
# device and all ports follow from the VM's name
disk-rate-mib-s = 0                   # bounds of making a replica; 0: as fast as it goes
memory-rate-mib-s = 0

[management]
address = "198.51.100.1"

[arbiter]
path = "/mnt/arbiter/web"             # reached by both hosts; NFS: hard,noac,lookupcache=none
# kind = "etcd"                       # instead of a directory, an etcd cluster:
# endpoints = ["https://192.0.2.11:2379", "https://192.0.2.12:2379", "https://192.0.2.13:2379"]
# prefix = "/colo-ebpf"               # the record is below it: /colo-ebpf/web/record
# ca-file = "/etc/colo-ebpf/etcd-ca.pem"
# cert-file = "/etc/colo-ebpf/etcd-client.pem"
# key-file = "/etc/colo-ebpf/etcd-client.key"

[checkpoint]
mode = "auto"                         # or "compare", or "periodic"
max-pause-ms = 0                      # epochs are made shorter for it; 0: they are not

[start]
role = "primary"                      # the one that starts the VM for the first time

# [fence]                             # turns the other host off when it is taken over unasked
# command = ["/etc/colo-ebpf/fence"]  # no shell; exit 0: it is certainly off
# when = "before-solo"                # nothing leaves before it is off; or "after-solo", or "off"
# timeout-ms = 10000                  # then the command is killed, and has failed

# [notify]                            # is told of each change of state, and decides nothing
# command = ["/etc/colo-ebpf/notify"] # no shell; COLO_VM, COLO_OLD, COLO_NEW, COLO_WHY, ...
# timeout-ms = 10000                  # then the command is killed

# [watchdog]                          # resets this host if the daemon hangs while the VM serves
# device = "/dev/watchdog"
# timeout-s = 30                      # longer than a restart of the daemon takes
"""
