# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of the figures of a run: targets, tables, plots and the page.

Everything here reads results that were measured before.
Nothing is measured here.
"""
