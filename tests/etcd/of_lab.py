# SPDX-License-Identifier: GPL-2.0-only
"""A lab's etcd, asked as an operator's tool asks it."""

from __future__ import annotations

import http.client
import json
from typing import Any

from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import ARBITER_ADDRESS, ARBITER_PORT

_TIMEOUT_S = 20


def ask(lab: Lab, what: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to its member."""

    def request() -> dict[str, Any]:
        connection = http.client.HTTPConnection(ARBITER_ADDRESS, ARBITER_PORT, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", f"/v3/{what}", json.dumps(body))
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    return namespaces.run_in(lab.namespace_of("arbiter"), request)


def set_room(lab: Lab, *, left: bool) -> None:
    """Without room it answers what is read, and refuses whatever would be written."""
    identity = ask(lab, "maintenance/status", {})["header"]["member_id"]
    action = "DEACTIVATE" if left else "ACTIVATE"
    alarm = {"action": action, "alarm": "NOSPACE", "memberID": identity}
    ask(lab, "maintenance/alarm", alarm)
