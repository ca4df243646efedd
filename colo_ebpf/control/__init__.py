# SPDX-License-Identifier: GPL-2.0-only
"""The control plane of one VM on one host: it decides, and has done what it decided.

`daemon` wires the packages together; `decision` and `checkpoint` are pure.
Neither bcc, pyroute2 nor nbd is imported in this package: `datapath` and `storage` do that.
"""
