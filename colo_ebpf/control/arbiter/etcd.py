# SPDX-License-Identifier: GPL-2.0-only
"""The arbiter in etcd: one key per VM, whose value is the record.

A swap is one transaction. It compares the revision and the value that were read just before, and
in them generation and nonce, and answers with what the key holds afterwards: so the answer tells
who won, and a transaction sent twice tells what became of the first. Reads go through the
cluster's leader (linearizable, etcd's default); only the current value is looked at, so compacting
the history does not matter.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

from colo_ebpf.control.arbiter.etcd_client import AlarmReply, Etcd, KeyValue, RangeReply, TxnReply
from colo_ebpf.control.decision.record import Record, cold, decode, encode, sealed
from colo_ebpf.errors import ArbiterError, SwapUnknownError, UnansweredError

_RANGE, _TXN, _ALARM = "/v3/kv/range", "/v3/kv/txn", "/v3/maintenance/alarm"


class EtcdArbiter:
    """port Arbiter on an etcd cluster. One VM per key."""

    def __init__(self, etcd: Etcd, key: str) -> None:
        self._etcd, self._key = etcd, key

    async def read(self) -> Record:
        """The record; raises ArbiterError if there is none or no endpoint answers."""
        return self._record(await self._current(self._etcd.deadline()))

    async def swap(self, old: Record, new: Record) -> Record:
        """See port Arbiter. All of it, failing over included, within one deadline."""
        deadline = self._etcd.deadline()
        mine = sealed(new, secrets.token_hex(8))
        current = await self._current(deadline)
        record = self._record(current)
        if (record.generation, record.nonce) != (old.generation, old.nonce):
            return record
        unchanged = [
            {"target": "MOD", "mod_revision": current.mod_revision},
            {"target": "VALUE", "value": _text(current.value)},
        ]
        return self._record(await self._put_if(unchanged, mine, deadline))

    async def init(self, host: str) -> Record:
        """Write generation 1, cold at `host`; raises ArbiterError if there is a record."""
        mine = sealed(cold(host), secrets.token_hex(8))
        absent = [{"target": "CREATE", "create_revision": "0"}]
        record = self._record(await self._put_if(absent, mine, self._etcd.deadline()))
        if record.nonce != mine.nonce:
            raise ArbiterError(
                f"etcd key {self._key} holds a record already ({record.describe()}); "
                "`arbiter replace` writes another one"
            )
        return record

    async def examine(self) -> Record:
        """Read through each endpoint alone. Raises ArbiterError naming those that fail, or an alarm
        that the cluster has raised."""
        records, failures = [], []
        for endpoint in self._etcd.endpoints:
            try:
                current = await self._current(self._etcd.deadline(), endpoint)
                records.append(self._record(current))
            except UnansweredError as e:
                failures.append(str(e))
            except ArbiterError as e:
                failures.append(f"{endpoint}: {e}")
        if not failures:
            failures += await self._alarms()
        if failures:
            raise ArbiterError("; ".join(failures))
        return max(records, key=lambda record: record.generation)

    async def check(self) -> None:
        """Any endpoint answers, and the cluster has raised no alarm."""
        await self.read()
        if alarms := await self._alarms():
            raise ArbiterError("; ".join(alarms))

    async def _alarms(self) -> list[str]:
        """With one raised etcd answers reads and refuses what a takeover has to write."""
        body = {"action": "GET"}
        reply = await self._etcd.ask(_ALARM, body, AlarmReply, self._etcd.deadline())
        return [
            f"etcd has raised the alarm {name}: no record can be written, so no takeover can be; "
            "make room (compact, `etcdctl defrag`), then `etcdctl alarm disarm`"
            for name in sorted({one.alarm for one in reply.alarms})
        ]

    async def _current(self, deadline: float, only: str = "") -> KeyValue:
        reply = await self._etcd.ask(_RANGE, {"key": self._name}, RangeReply, deadline, only)
        return self._one(reply.kvs)

    async def _put_if(self, same: list[dict[str, str]], mine: Record, deadline: float) -> KeyValue:
        """Write `mine` if the key is as compared; what the key holds afterwards."""
        look = {"request_range": {"key": self._name}}
        put = {"request_put": {"key": self._name, "value": _text(encode(mine))}}
        body: dict[str, Any] = {
            "compare": [{"key": self._name, "result": "EQUAL", **what} for what in same],
            "success": [put, look],
            "failure": [look],
        }
        try:
            reply = await self._etcd.ask(_TXN, body, TxnReply, deadline)
        except UnansweredError as e:
            if not e.sent:
                raise
            raise SwapUnknownError(
                f"{e}: whether generation {mine.generation} was written to {self._key} is not "
                "known yet"
            ) from e
        looked = reply.responses[-1].response_range if reply.responses else None
        return self._one(looked.kvs if looked else [])

    @property
    def _name(self) -> str:
        return _text(self._key.encode())

    def _one(self, found: list[KeyValue]) -> KeyValue:
        if not found:
            raise ArbiterError(
                f"no record in etcd key {self._key}: run `colo-ebpf arbiter init` once, when no "
                "VM of this name runs anywhere"
            )
        return found[0]

    def _record(self, found: KeyValue) -> Record:
        return decode(found.value, f"etcd key {self._key}")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
