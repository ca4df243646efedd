# SPDX-License-Identifier: GPL-2.0-only
"""Clusters that the tests of a module share; each test has a key of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import require
from tests.etcd.cluster import Cluster, cluster


@pytest.fixture(scope="package")
def _one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require("etcd")
    with cluster(tmp_path_factory.mktemp("one"), 1) as one:
        yield one


@pytest.fixture
def one(_one: Cluster) -> Cluster:
    """A cluster of one member, in order."""
    _one.heal()
    return _one


@pytest.fixture(scope="package")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require("etcd")
    with cluster(tmp_path_factory.mktemp("three"), 3) as three:
        yield three


@pytest.fixture
def three(_three: Cluster) -> Cluster:
    """A cluster of three members, all in order."""
    _three.heal()
    return _three


@pytest.fixture
def key(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of this test only."""
    return f"/colo-ebpf/{tmp_path.name}/record"
