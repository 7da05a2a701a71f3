"""Joining and starting clusters: what a person reads when it does not work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from benchmarks.local_server import free_port
from pipelines.errors import UserError
from pipelines.runtime import cluster, ray_internals


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[::1]:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = form.format(free_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(UserError, match=r"RAY_ADDRESS is .* where no cluster answers .*ray start"),
        cluster.connect(),
    ):
        pass


def test_a_cluster_that_does_not_start_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(UserError, match=r"starting Ray here failed: The current.*startup\. Look"),
        cluster.connect(),
    ):
        pass


@pytest.mark.parametrize("address", [None, ""])
def test_without_an_address_no_cluster_of_somebody_else_is_joined(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: dict[str, object] = {}

    def init(**options: object) -> None:
        requested.update(options)
        raise Exception("enough")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="starting Ray here failed"), cluster.connect():
        pass
    assert requested["address"] == "local"


@pytest.mark.parametrize(
    ("cpus", "shared_gib", "available_gib", "expected_gib"),
    [
        (2, 12, 20, 1),  # never less, while there is memory for it
        (16, 64, 100, 8),  # half a GiB per CPU
        (16, 2, 100, 2),  # what a container's shared memory holds
        (16, 0.0625, 100, 1),  # too little for anything: Ray takes the disk
        (16, 64, 10, 2),  # a fifth of the memory that is left
    ],
)
def test_the_object_store_has_room_for_every_core_that_decodes(
    cpus: int,
    shared_gib: float,
    available_gib: int,
    expected_gib: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gib = 1 << 30
    monkeypatch.setattr(cluster, "node_cpus", lambda: cpus)
    monkeypatch.setattr(ray_internals, "shared_memory_bytes", lambda: int(shared_gib * gib))
    monkeypatch.setattr(ray_internals, "available_memory_bytes", lambda: available_gib * gib)
    assert cluster._object_store_bytes() == expected_gib * gib


@pytest.mark.parametrize(
    ("container", "scheduler", "node", "expected"),
    [(64, 64, None, 64), (4, 64, None, 4), (64, 6, None, 6), (64, 64, 2, 2), (2, 64, 4, 2)],
)
def test_threads_follow_the_smallest_limit_of_this_process(
    container: int,
    scheduler: int,
    node: int | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_internals, "limit_of_cpus", lambda: container)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(scheduler)), raising=False)
    if node is not None:
        monkeypatch.setattr(cluster, "_cpus_of_node", lambda: node)
    else:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cluster.node_cpus() == expected


def test_ray_starts_for_the_first_that_needs_it_and_ends_with_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    @contextmanager
    def start() -> Iterator[cluster.Resources]:
        said.append("start")
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        yield cluster.Resources(2, 0)
        said.append("end")

    monkeypatch.setattr(cluster, "_connect", start)
    monkeypatch.setattr(cluster, "resources", lambda: cluster.Resources(2, 0))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with cluster.connect_once():
        assert said == []
        for _ in range(2):
            with cluster.connect() as found:
                assert found.cpus == 2
        said.append("last")
    assert said == ["start", "last", "end"]
    with cluster.connect_once():
        pass
    assert said == ["start", "last", "end"]
