"""What nothing needs goes; what a run, a registered model or a running job needs stays."""

import json
import os
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.clean import run as cleaning
from pipelines.clean.config import CleanConfig
from pipelines.clean.find import Store, held_twice, left_trainings, unused_datasets
from pipelines.data.manifest import Manifest, write_manifest
from pipelines.errors import UserError
from pipelines.models import checkpoint
from pipelines.storage import lease
from pipelines.tracking.references import References, references
from pipelines.tracking.runs import RunSpec, ensure_run

DAY_S = 86400.0
NOTHING = References(frozenset(), frozenset())


def age(folder: Path, days: float) -> None:
    """Let everything in a folder have been written so many days ago."""
    then = time.time() - days * DAY_S
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def training(store: Path, name: str, *, commit: dict[str, str] | None, days: float = 60) -> Path:
    stage = store / "pretrain" / name
    for step in (2, 4, 6):
        checkpoint.save(str(stage), step, {}, {})
    (stage / "model").mkdir()
    (stage / "model" / "weights.safetensors").write_bytes(b"weights")
    if commit is not None:
        (stage / "commit.json").write_text(json.dumps(commit))
    age(stage, days)
    return stage


def dataset(store: Path, name: str, seed: int, days: float = 60) -> tuple[Path, str]:
    folder = store / "prepare" / name
    manifest = Manifest(
        splits={}, classes=(), mean_rgb=(0, 0, 0), masks=(), stored_side=64, seed=seed,
        listed=0, written=0, quarantined=0, duplicates=0,
    )  # fmt: skip
    write_manifest(str(folder), manifest)
    (folder / "train").mkdir()
    (folder / "train" / "0.parquet").write_bytes(b"images")
    age(folder, days)
    return folder, manifest.fingerprint


def steps(stage: Path) -> list[str]:
    return sorted(path.name for path in (stage / "checkpoints").iterdir())


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Cleaning without a tracking server and without waiting for jobs that begin."""
    monkeypatch.setattr(cleaning, "references", lambda uri: NOTHING)
    monkeypatch.setattr(cleaning, "BEGINNING_S", 0.0)

    def with_settings(store: Path, **more: object) -> dict[str, int]:
        return cleaning.clean_store(CleanConfig(store=str(store), **more))  # type: ignore[arg-type]

    return with_settings


def test_a_dry_run_changes_nothing_and_names_what_would_go(
    tmp_path: Path, clean, capsys: pytest.CaptureFixture[str]
) -> None:
    training(tmp_path, "finished", commit={"dataset": "d", "model_uri": "models:/m"})
    training(tmp_path, "left", commit=None)
    dataset(tmp_path, "unused", seed=1)
    before = contents(tmp_path)
    wanted = clean(tmp_path, dry_run=True)
    assert contents(tmp_path) == before
    assert set(wanted) == {"checkpoint", "training", "dataset"}
    shown = capsys.readouterr().err
    assert "would remove training" in shown and "not finished, unchanged for 60 days" in shown
    assert "1 models lie in the store and in MLflow" in shown
    assert clean(tmp_path) == wanted


def test_of_a_finished_training_model_and_last_checkpoint_stay(tmp_path: Path, clean) -> None:
    """From the last one a longer training continues."""
    stage = training(tmp_path, "finished", commit={"dataset": "d"}, days=0)
    clean(tmp_path)
    assert steps(stage) == ["step-00000006"]
    found = checkpoint.latest(str(stage))
    assert found is not None and found.step == 6
    assert (stage / "model" / "weights.safetensors").exists()


def test_unfinished_work_goes_only_when_it_is_old(tmp_path: Path, clean) -> None:
    old = training(tmp_path, "old", commit=None, days=31)
    young = training(tmp_path, "young", commit=None, days=29)
    work = tmp_path / "prepare" / "begun" / "_work"
    work.mkdir(parents=True)
    (work / "unit").write_text("images")
    age(tmp_path / "prepare", 31)
    clean(tmp_path)
    assert not old.exists() and not work.parent.exists() and len(steps(young)) == 3


def test_a_training_under_way_stays_however_old_its_files(tmp_path: Path, clean) -> None:
    stage = training(tmp_path, "slow", commit=None)
    data, _ = dataset(tmp_path, "unused", seed=1)
    claim = lease.acquire(f"{stage}/lease", lease.new_owner(), lease_s=60, now=time.time())
    age(stage, 60)
    assert clean(tmp_path) == {}
    assert len(steps(stage)) == 3 and (data / "manifest.json").exists()
    lease.release(claim)
    age(stage, 60)
    assert set(clean(tmp_path)) == {"training", "dataset"}
    assert not stage.exists() and not data.exists()


def test_a_training_that_begins_meanwhile_keeps_its_dataset(
    tmp_path: Path, clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = dataset(tmp_path, "unused", seed=1)
    before = contents(data)

    def begin(seconds: float) -> None:
        place = str(tmp_path / "pretrain" / "new" / "lease")
        lease.acquire(place, lease.new_owner(), lease_s=60, now=time.time())

    remove = cleaning._remove_dataset
    monkeypatch.setattr(
        cleaning, "_remove_dataset", lambda spare, store: remove(spare, store, begin)
    )
    assert clean(tmp_path) == {}
    assert contents(data) == before


def test_datasets_that_trainings_or_runs_name_stay(tmp_path: Path) -> None:
    """By what they hold, or by their folder where images were added since."""
    _, trained = dataset(tmp_path, "a", seed=1)
    _, tracked = dataset(tmp_path, "b", seed=2)
    dataset(tmp_path, "c", seed=3)
    dataset(tmp_path, "d", seed=4)
    dataset(tmp_path, "e", seed=5)
    training(tmp_path, "t", commit={"dataset_fingerprint": trained, "dataset": "/old/prepare/c"})
    known = References(frozenset({tracked, "d"}), frozenset())
    store = Store(str(tmp_path), known, time.time(), 30)
    assert [spare.uri for spare in unused_datasets(store)] == [f"{tmp_path}/prepare/e"]


def test_an_unfinished_training_whose_model_is_registered_stays(tmp_path: Path) -> None:
    training(tmp_path, "a" * 16, commit=None)
    training(tmp_path, "b" * 16, commit=None)
    known = References(frozenset(), frozenset({"a" * 64}))
    (spare,) = left_trainings(Store(str(tmp_path), known, time.time(), 30))
    assert spare.uri.endswith("b" * 16)
    assert held_twice(Store(str(tmp_path), known, time.time(), 30)) == (0, 0)


def test_old_revisions_go_and_the_newest_stays(tmp_path: Path, clean) -> None:
    data, _ = dataset(tmp_path, "used", seed=1, days=0)
    (data / "revisions").mkdir()
    for number in (1, 2, 3):
        (data / "revisions" / f"{number:06}.json").write_text("{}")
    assert set(clean(tmp_path)) == {"revision"}
    assert [path.name for path in (data / "revisions").iterdir()] == ["000003.json"]


def test_the_server_says_what_it_refers_to(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert references(uri) == NOTHING and not (tmp_path / "mlflow.db").exists()
    spec = RunSpec(
        uri=uri, store=str(tmp_path), experiment="x", key="k" * 64, name="n",
        tags={"dataset_fingerprint": "f"}, dataset_uri="/s/prepare/abc", dataset_fingerprint="f",
    )  # fmt: skip
    run_id = ensure_run(spec)
    server = MlflowClient(uri, uri)
    server.create_registered_model("m")
    server.create_model_version("m", f"{tmp_path}/model", run_id)
    assert references(uri) == References(frozenset({"f", "abc"}), frozenset({"k" * 64}))
    server.delete_run(run_id)
    assert references(uri).datasets == frozenset()


def test_no_page_of_the_answers_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name in ("one", "two", "three"):
        tags = {"dataset_fingerprint": name}
        ensure_run(
            RunSpec(uri=uri, store=str(tmp_path), experiment=name, key=name, name=name, tags=tags)
        )
    search = MlflowClient.search_experiments
    monkeypatch.setattr(  # as with more experiments than a page holds
        MlflowClient,
        "search_experiments",
        lambda self, **asked: search(self, **{**asked, "max_results": 1}),
    )
    assert references(uri).datasets == {"one", "two", "three"}


def test_without_an_answer_nothing_is_removed(tmp_path: Path) -> None:
    training(tmp_path, "left", commit=None)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"does not answer.*nothing was removed"):
        cleaning.clean_store(CleanConfig(store=str(tmp_path), tracking_uri="http://127.0.0.1:9"))
    assert contents(tmp_path) == before
