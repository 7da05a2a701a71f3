"""The chain knows what is missing and why; run in full it ends with a champion."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers import write_images

from pipelines.ablation.config import AblateConfig
from pipelines.ablation.sweep import run_sweep
from pipelines.errors import RefusedError, UserError
from pipelines.evaluation.settings import InpaintingSettings
from pipelines.pretrain import key
from pipelines.pretrain import recipe as learning
from pipelines.pretrain.config import PretrainConfig
from pipelines.promotion.gates import Gates
from pipelines.runtime.cluster import Resources
from pipelines.tracking import client, registry
from pipelines.workflow import ensure_dataset, graph, run, stages
from pipelines.workflow.config import WorkflowConfig
from pipelines.workflow.graph import StageOutcome
from pipelines.workflow.run import graph_of, run_workflow, source_key


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "pictures" / "train", {"apple": 12, "pear": 12})
    write_images(tmp_path / "pictures" / "val", {"apple": 4, "pear": 4}, first=100)
    return tmp_path / "pictures"


def config(images: Path, **options: object) -> WorkflowConfig:
    gates = images.parent / "gates.yaml"
    gates.write_text("required: [inpainting]\n")
    usual = {
        "source": str(images),
        "store": str(images.parent / "store"),
        "gates": str(gates),
        "tasks": ("inpainting",),
        "inpainting": InpaintingSettings(strategies=("central",), images=8, database=8, panel=2),
        "pretrain": PretrainConfig(
            preset="inpaint",
            bottleneck=32,
            fill="smooth",  # a few steps alone collapse
            steps=24,
            batch_size=8,
            validation_images=4,
        ),
    }
    return WorkflowConfig(**{**usual, **options})  # type: ignore[arg-type]


def test_a_setting_changes_its_stage_and_what_follows(images: Path) -> None:
    before = graph.keys(graph_of(config(images)))
    longer = replace(config(images).pretrain, steps=3)
    after = graph.keys(graph_of(config(images, pretrain=longer)))
    assert before["prepare"] == after["prepare"]
    assert all(
        before[name] != after[name] for name in ("pretrain", "evaluate inpainting", "promote")
    )
    named = graph.keys(graph_of(config(images, name="other")))
    assert [name for name in before if before[name] != named[name]] == ["promote"]


def test_how_and_where_it_is_run_changes_no_key(images: Path, tmp_path: Path) -> None:
    before = graph.keys(graph_of(config(images)))
    elsewhere = replace(config(images).pretrain, num_workers=2, log_every=1)
    store = str(tmp_path / "moved")
    assert graph.keys(graph_of(config(images, pretrain=elsewhere, store=store))) == before


def test_nothing_is_prepared_for_a_tracking_server_that_is_none(images: Path) -> None:
    requested = config(images, tracking_uri="localhost:5000")
    common = {name: getattr(requested, name) for name in ("source", "store", "tracking_uri")}
    pretraining = replace(requested.pretrain, **common)
    comparing = AblateConfig(**common, pretrain=requested.pretrain, tasks=("inpainting",))
    for start in (
        partial(run_workflow, requested),
        partial(ensure_dataset.pretrain_on_source, pretraining),
        partial(run_sweep, comparing),
    ):
        with pytest.raises(UserError, match=r"^tracking_uri is 'localhost:5000'"):
            start()
        assert not Path(requested.store).exists()


def test_a_training_that_would_differ_has_another_key(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = graph.keys(graph_of(config(images)))
    usual = learning.default_objective
    monkeypatch.setattr(learning, "default_objective", lambda n: replace(usual(n), overlap=0))
    other_default = graph.keys(graph_of(config(images)))
    monkeypatch.setattr(learning, "default_objective", usual)
    monkeypatch.setattr(key, "KEY_VERSION", key.KEY_VERSION + 1)
    other_version = graph.keys(graph_of(config(images)))
    assert len({k["pretrain"] for k in (before, other_default, other_version)}) == 3
    assert before["prepare"] == other_version["prepare"]


def test_what_mlflow_lacks_is_measured_by_its_folder_and_not_promoted(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "evaluate_models", lambda config: {"model": config.model})
    summary = {"tracking_run_id": "1" * 32, "model": "folder", "delivered": False}
    inputs = {"prepare": {"dataset": "d"}, "pretrain": summary}
    requested = config(images)
    late = run.evaluate(inputs, config=requested, task="inpainting")
    assert late["model"] == ("model=folder",)
    with pytest.raises(UserError, match="rerun the same command to deliver the rest"):
        run.promote({"pretrain": summary}, config=requested, demanded=Gates())
    inputs["pretrain"] = summary | {"delivered": True}
    found = run.evaluate(inputs, config=requested, task="inpainting")
    assert found["model"] == (f"model={'1' * 32}",)


def test_a_task_that_a_prepared_dataset_cannot_serve_is_refused(images: Path) -> None:
    with pytest.raises(UserError, match="detection needs one of voc"):
        config(images, tasks=("inpainting", "detection"))


def test_what_cannot_be_measured_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serially: None
) -> None:
    write_images(tmp_path, {"flat": 8})
    trained: list[str] = []

    def train(config: PretrainConfig, uri: str) -> dict[str, str]:
        trained.append(uri)
        return {"key": "k" * 64}

    monkeypatch.setattr(run, "pretrain_model", train)

    def pretrained(**options: object) -> None:
        chain = {stage.name: stage for stage in graph_of(config(tmp_path / "flat", **options))}
        chain["pretrain"].run({"prepare": chain["prepare"].run({})})

    with pytest.raises(UserError, match="task 'linear' needs labels of at least 2 classes"):
        pretrained(tasks=("inpainting", "linear"))
    assert not trained
    pretrained(tasks=("inpainting", "linear"), until="pretrain")  # then nothing is measured
    pretrained()
    assert len(trained) == 2


def test_a_new_image_changes_every_key(images: Path) -> None:
    before = graph.keys(graph_of(config(images)))
    write_images(images / "train", {"apple": 1}, first=500)
    after = graph.keys(graph_of(config(images)))
    assert all(before[name] != after[name] for name in before)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="there is no image in it"):
        source_key(str(tmp_path / "empty"))


def test_a_setting_that_would_be_ignored_is_refused(images: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrain\.store is elsewhere"):
        config(images, pretrain=PretrainConfig(store="elsewhere"))


def test_the_plan_runs_nothing(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_workflow(config(images, plan=True, until="evaluate"))
    text = capsys.readouterr().err
    assert "evaluate inpainting" in text and "promote" not in text
    assert "never finished in this store" in text
    assert not Path(config(images).store).exists()


@pytest.mark.slow
def test_the_chain_ends_with_a_champion_and_a_rerun_skips_all(
    ray_cluster: None, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_workflow(config(images, until="pretrain"))
    assert "promote" not in capsys.readouterr().err
    run_workflow(config(images))
    text = capsys.readouterr().err
    assert "pretrain: skipped" in text and "promote: done" in text
    uri = client.tracking_uri(None, config(images).store)
    champion = registry.by_alias(uri, "context-encoder", "champion")
    assert champion is not None and champion.version == "1"
    run_workflow(config(images))
    assert capsys.readouterr().err.count(": skipped") == 4
    harder = images.parent / "harder.yaml"
    harder.write_text("thresholds:\n  inpainting/central/hole/128/PSNR: {min: 90}\n")
    with pytest.raises(UserError, match=r"stage promote refused: refused.*wanted min 90"):
        run_workflow(config(images, gates=str(harder), name="other"))


@pytest.mark.parametrize(
    ("statuses", "error"),
    [({"promote": "refused"}, RefusedError), ({"pretrain": "failed"}, UserError)],
)
def test_a_refused_gate_is_told_apart_from_a_failed_stage(
    statuses: dict[str, graph.Status],
    error: type[UserError],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(wanted: list[graph.Stage], *_: object, **__: object) -> dict[str, StageOutcome]:
        return {
            stage.name: StageOutcome(
                name=stage.name, key="k" * 64, status=statuses.get(stage.name, "done"), error="why"
            )
            for stage in wanted
        }

    monkeypatch.setattr(run, "execute", ended)
    monkeypatch.setattr(run.cluster, "connect", lambda: nullcontext(Resources(2, 0)))
    monkeypatch.setattr(run, "_log", lambda *_: None)
    ((name, status),) = statuses.items()
    with pytest.raises(UserError, match=f"stage {name} {status}: why") as raised:
        run_workflow(config(images))
    assert type(raised.value) is error
    assert getattr(raised.value, "code", 1) == (3 if error is RefusedError else 1)
