# SPDX-License-Identifier: GPL-2.0-only
"""The arbiters: where the record of who may speak for the VM is kept.

Each one is a compare-and-swap of the record by its generation, with a clear answer or none.
What the record means, and who may change it when, is not decided here.
"""
