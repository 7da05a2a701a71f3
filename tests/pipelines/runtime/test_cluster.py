"""Joining and starting clusters: what a person reads when it does not work."""

import pytest
import ray
from helpers import free_port

from pipelines.errors import UserError
from pipelines.runtime import cluster


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
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
    monkeypatch.setattr(cluster.ray_utils, "get_num_cpus", lambda **_: cpus)
    monkeypatch.setattr(cluster.ray_utils, "get_shared_memory_bytes", lambda: int(shared_gib * gib))
    monkeypatch.setattr(cluster.ray_utils, "estimate_available_memory", lambda: available_gib * gib)
    assert cluster._object_store_bytes() == expected_gib * gib
