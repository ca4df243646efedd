# SPDX-License-Identifier: GPL-2.0-only
"""The configuration: one TOML file for one VM on one host, checked before anything starts.

`schema` has every key, `checks` what keys must be to each other, `reading` takes a file in.
What a key does is not known here.
"""
