"""A folder of one machine is no store of a cluster of several."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.errors import UserError
from pipelines.runtime import shared_folder
from pipelines.runtime.shared_folder import is_seen, require_shared


def make_cluster(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, bool]) -> None:
    """Nodes by address, and whether each has the folder."""
    found = [{"NodeID": address, "NodeManagerAddress": address, "Alive": True} for address in nodes]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray, "wait", lambda looks, **_: (looks, []))
    monkeypatch.setattr(ray, "get", lambda look: nodes[look])
    monkeypatch.setattr(shared_folder, "look_from", lambda node, marker: node)


@pytest.mark.parametrize("nodes", [{"a": False}, {"a": True, "b": True}])
def test_one_machine_or_a_shared_folder_is_taken(
    nodes: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cluster(monkeypatch, nodes)
    require_shared("store", f"file://{tmp_path / 's'}")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "s"])


def test_a_node_without_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cluster(monkeypatch, {"10.0.0.1": True, "10.0.0.2": False})
    with pytest.raises(UserError, match=r"store is .* 1 of the 2 nodes .*10\.0\.0\.2.* s3://"):
        require_shared("store", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    require_shared("store", "s3://bucket/store")


def test_a_marker_is_seen_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "PATIENCE_S", 0.0)
    assert not is_seen(tmp_path / "m")
    (tmp_path / "m").touch()
    assert is_seen(tmp_path / "m")


@pytest.mark.slow
def test_every_node_of_a_real_cluster_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    looked: list[str] = []
    real = shared_folder.look_from

    def look(node: str, marker: Path) -> Any:
        looked.append(node)
        return real(node, marker)

    monkeypatch.setattr(shared_folder, "look_from", look)
    try:
        require_shared("store", str(tmp_path))
        assert len(set(looked)) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
