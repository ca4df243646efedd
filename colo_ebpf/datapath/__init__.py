# SPDX-License-Identifier: GPL-2.0-only
"""The data plane: eBPF programs, their maps, and the devices they hang on.

`plane` is the data plane of one VM; the packages below it are the kernel's parts of it.
This package alone imports bcc and pyroute2, and it decides nothing about a failover.
"""
