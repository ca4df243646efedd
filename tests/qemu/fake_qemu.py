#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU that was built without COLO, as far as its monitors can tell."""

import json
import re
import socket
import sys
import threading


def _serve(fd: int) -> None:
    with socket.socket(fileno=fd) as listener:
        connection, _ = listener.accept()
    with connection:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        _say(connection, {"QMP": {"version": version, "capabilities": ["oob"]}})
        while data := connection.recv(65536):  # a request need not end in a newline
            request = json.loads(data)
            name = request.get("execute") or request.get("exec-oob")
            reply = [{"capability": "events", "state": False}] if "query" in name else {}
            echoed = {"id": request["id"]} if "id" in request else {}
            _say(connection, {"return": reply, **echoed})


def _say(connection: socket.socket, message: dict) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sockets = re.findall(r"id=mon\d,fd=(\d+)", " ".join(sys.argv))
    threads = [threading.Thread(target=_serve, args=(int(fd),)) for fd in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
