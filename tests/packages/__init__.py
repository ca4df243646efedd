# SPDX-License-Identifier: GPL-2.0-only
"""The Debian packages that `make deb` built: `make deb-test`."""
