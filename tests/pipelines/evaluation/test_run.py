"""The evaluation stage: what is measured, committed, skipped and reported."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_helpers import empty_manifest
from helpers import ROOT, class_folders, noise_image, voc_folder
from model_helpers import SMALL, save_small_model
from rich.console import Console

from ce_model.networks import NetworkConfig, layer_features
from pipelines import storage
from pipelines.cli import parse
from pipelines.data.manifest import write_manifest
from pipelines.errors import UserError
from pipelines.evaluation import charts, encoders, measure, plan, report, results
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.measure import perform
from pipelines.evaluation.run import (
    _about,
    _gather,
    _publish,
    _table,
    cluster,
    evaluate_models,
    metrics_of,
)
from pipelines.evaluation.settings import (
    SMALLEST_SIDE,
    FinetuneSettings,
    HeadTrainingSettings,
    InpaintingSettings,
    ProbeSettings,
    RetrievalSettings,
    SegmentationSettings,
    VocSettings,
)
from pipelines.evaluation.task import Job
from pipelines.evaluation.tasks import probes
from pipelines.evaluation.tasks.inpainting import METRICS
from pipelines.models import resolve
from pipelines.runtime.progress import plain_console
from pipelines.tracking import recorder
from pipelines.tracking.client import client, tracking_uri


def config(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    chosen: dict[str, Any] = {
        "model": (f"ours={tmp_path / 'model'}", "random"),
        "data": (str(tmp_path / "data"),),
        "tasks": ("inpainting", "linear", "knn", "retrieval"),
        "store": str(tmp_path / "store"),
        "seeds": (0, 1),
        "network": SMALL,
        "inpainting": InpaintingSettings(strategies=("central", "random_block"), panel=2),
        "frozen": ProbeSettings(k=3, values=64, label_shares=(1.0,)),
        "retrieval": RetrievalSettings(shown=2),
        "report": str(tmp_path / "report"),
    }
    return EvaluateConfig(**{**chosen, **changes})


@pytest.fixture(scope="module")
def evaluated(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    save_small_model(folder / "model")
    class_folders(folder / "data", per_class=4)
    evaluate_models(config(folder))
    return folder


def test_the_report_holds_every_row_with_its_spread_and_the_quoted_ones(evaluated: Path) -> None:
    found = json.loads((evaluated / "report" / "report.json").read_text())
    sections = {section["task"]: section for section in found["sections"]}
    assert list(sections) == ["inpainting", "linear", "knn", "retrieval"]
    linear = [r for r in sections["linear"]["rows"] if r["model"] == "random"]
    assert len(linear) == 6 and all(len(r["accuracy"]["values"]) == 2 for r in linear)
    methods = {r["method"] for r in sections["inpainting"]["rows"]}
    assert {"this model", "neighbour, these features", "Telea", "neighbour, HOG"} <= methods
    data = str(evaluated / "data")
    assert sections["knn"]["data_key"] == TASKS["knn"].fingerprint(
        data, "classes", config(evaluated)
    )
    page = (evaluated / "report" / "report.html").read_text()
    assert "18.58" in page and "quoted" in page and "data:image/png;base64," in page
    assert "src='http" not in page and "href=" not in page  # nothing outside the file
    shown = (
        "all rows, the best on top",
        "input, the hole in grey",
        "target",
        "this model (",
        "Telea",
    )
    places = [page.index(f"<figcaption>{title}") for title in shown]
    assert places == sorted(places) and places[-1] < page.index("<caption>in the hole")
    assert "class=best" in page and "images only: differences" in page
    assert "random has no row: it was never trained to fill holes" in page


def test_the_scores_are_in_mlflow_with_the_report(evaluated: Path) -> None:
    server = client(tracking_uri(None, str(evaluated / "store")))
    experiment = server.get_experiment_by_name("context-encoder-evaluation")
    (logged,) = server.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert "knn/data/random/e6/accuracy" in logged.data.metrics
    names = [file.path for file in server.list_artifacts(logged.info.run_id)]
    assert {"report.html", "report.json"} <= set(names)


def test_a_rerun_measures_nothing_and_says_so(
    evaluated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (evaluated / "report" / "report.json").read_bytes()
    monkeypatch.setattr(measure, "measure_job", None)  # would fail here
    assert evaluate_models(config(evaluated))["delivered"]
    assert "already measured: 14 of 14" in capsys.readouterr().err
    assert (evaluated / "report" / "report.json").read_bytes() == before


def computes_in_bf16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    """Let the processor say so, in this process alone."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: answer)


def test_a_key_names_what_auto_is_on_the_workers_whatever_machine_starts_them(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = "bf16" if encoders.resolve_precision("auto") == torch.bfloat16 else "fp32"
    computes_in_bf16(monkeypatch, there != "bf16")
    for precision in ("auto", there):
        assert evaluate_models(config(evaluated, precision=precision))["precision"] == there
        assert "already measured: 14 of 14" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="about processors without bf16")
def test_a_machine_without_the_precision_of_the_others_says_so(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computes_in_bf16(monkeypatch, False)
    subject = resolve.untrained_ref("random", "random", SMALL)
    job = Job(
        task="knn", subject=subject, holes=(), data_uri=str(evaluated / "data"),
        database_uri=None, seed=0, uri="",
    )  # fmt: skip
    told = perform(job, config(evaluated, precision="bf16"))
    assert told is not None and told.startswith("precision is bf16; this cpu device has no bf16")
    assert "fp32 where the machines of a cluster differ" in told


def test_a_score_computed_twice_is_equal(evaluated: Path, tmp_path: Path) -> None:
    first = json.loads((evaluated / "report" / "report.json").read_text())
    again = evaluate_models(config(evaluated, store=str(tmp_path), tasks=("linear",), report=None))
    rows = [s["rows"] for s in first["sections"] if s["task"] == "linear"]
    assert [s["rows"] for s in again["sections"]] == rows


def test_another_seed_measures_only_what_is_new(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_models(config(evaluated, tasks=("knn",), seeds=(0, 1, 2), report=None))
    assert "already measured: 4 of 6" in capsys.readouterr().err


def test_labels_are_required_for_probes_and_named_in_the_message(
    evaluated: Path, tmp_path: Path
) -> None:
    for number in range(3):
        noise_image(tmp_path / "flat" / f"{number}.png", seed=number)
    with pytest.raises(UserError, match=r"task 'linear' has no data; it needs one of prepared"):
        evaluate_models(config(evaluated, data=(str(tmp_path / "flat"),)))


def test_what_a_task_cannot_use_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "connect", None)  # would fail here
    class_folders(tmp_path / "data", per_class=2)
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "data" / split / "dog")
    requested = config(tmp_path, model=("random",), tasks=("inpainting", "knn"))
    with pytest.raises(UserError, match=r"task 'knn' needs labels of at least 2 classes.*has 1 an"):
        evaluate_models(requested)
    requested = config(tmp_path, model=("random",), tasks=("knn",), frozen=ProbeSettings(side=67))
    with pytest.raises(UserError, match=r"knn at frozen\.side 67' needs an encoder of preset alex"):
        evaluate_models(requested)
    voc_folder(tmp_path)
    data, parts = str(tmp_path / "VOCdevkit"), VocSettings(train="train", test="train")
    for task in ("detection", "segmentation"):
        segmented = SegmentationSettings(train="train", test="train")
        requested = config(
            tmp_path, model=("autoencoder",), data=(data,), tasks=(task,), voc=parts,
            segmentation=segmented,
        )  # fmt: skip
        with pytest.raises(UserError, match=f"'{task}' needs.*'autoencoder' is of preset inpaint"):
            evaluate_models(requested)


def test_a_baseline_that_is_trained_wants_a_prepared_dataset(evaluated: Path) -> None:
    with pytest.raises(UserError, match="'autoencoder', which is trained first, and no prepared"):
        evaluate_models(config(evaluated, model=("autoencoder",), tasks=("knn",)))


def test_a_model_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    with pytest.raises(UserError, match=r"where there is no model.json; it must be a model folder"):
        evaluate_models(config(tmp_path, model=(str(tmp_path / "nothing"),)))


def test_weights_whose_keys_do_not_fit_are_refused(evaluated: Path, tmp_path: Path) -> None:
    save_small_model(tmp_path / "model")
    description = storage.read_json(str(tmp_path / "model" / "model.json"))
    description["network"]["bottleneck"] = 9
    storage.publish_json(str(tmp_path / "model" / "model.json"), description)
    with pytest.raises(UserError, match="do not fit the network"):
        evaluate_models(config(evaluated, model=(str(tmp_path / "model"),), tasks=("knn",)))


def test_names_of_rows() -> None:
    assert resolve.resolve_named("central=s3://bucket/run") == ("central", "s3://bucket/run")
    assert resolve.resolve_named("random") == ("random", "random")
    assert resolve.resolve_named("store/pretrain/0123/model") == (
        "0123",
        "store/pretrain/0123/model",
    )
    assert resolve.resolve_named("models:/ce@champion")[1] == "models:/ce@champion"


def test_an_overview_stands_only_where_there_is_something_to_compare() -> None:
    filling = {"title": "inpainting, x", "task": "inpainting", "about": "", "rows": [], "notes": {}}
    page = report.page({"seeds": [0], "models": [], "sections": [filling]}, {})
    assert "overview" not in page and "second table" not in page


def test_data_given_twice_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "data", per_class=2)
    monkeypatch.chdir(tmp_path)
    wanted = config(tmp_path, data=("data", "./data/", str(tmp_path / "data")), tasks=("knn",))
    assert len(plan.layouts_of(wanted)) == 1


def test_data_are_called_by_as_much_of_the_path_as_tells_them_apart() -> None:
    uris = ("/a/photos", "s3://b/photos", "s3://a/photos", "/a/voc/")
    assert plan.distinct(uris) == {
        "/a/photos": "a/photos",
        "s3://b/photos": "b/photos",
        "s3://a/photos": "s3:/a/photos",
        "/a/voc/": "voc",
    }
    assert plan.distinct(["/a/photos"]) == {"/a/photos": "photos"}


def test_a_dataset_of_a_store_is_called_after_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (str(tmp_path / (letter * 16)) for letter in "ab")
    for uri, source in ((one, "/data/photos"), (other, "s3://bucket/photos.tar")):
        write_manifest(uri, replace(empty_manifest(), source=source))
    assert plan.distinct([one]) == {one: "photos"}
    assert plan.distinct([one, other]) == {one: f"{'a' * 16}/photos", other: f"{'b' * 16}/photos"}


def test_data_of_one_name_keep_their_sections_and_metrics_apart(tmp_path: Path) -> None:
    subject = resolve.untrained_ref("random", "random", SMALL)
    jobs = []
    for score, name in enumerate(("a", "b")):
        uri = str(tmp_path / name)
        rows: list[results.Row] = [{"layer": "e6", "accuracy": float(score)}]
        results.commit(uri, results.Measured(rows, {}, {}))
        jobs.append(
            Job(
                task="knn", subject=subject, holes=(), data_uri=f"/{name}/photos",
                database_uri=None, seed=0, uri=uri,
            )
        )  # fmt: skip
    keys: plan.Fingerprints = {("knn", "/a/photos"): "one", ("knn", "/b/photos"): "two"}
    found = _gather(jobs, [(subject, 0)], config(tmp_path), keys)
    assert [s["title"] for s in found["sections"]] == ["knn, a/photos", "knn, b/photos"]
    assert [s["data_key"] for s in found["sections"]] == ["one", "two"]
    assert metrics_of(found) == {
        "knn/a/photos/random/e6/accuracy": 0.0,
        "knn/b/photos/random/e6/accuracy": 1.0,
    }


@pytest.mark.parametrize("problem", ["the server is away", None])
def test_a_report_that_mlflow_does_not_have_is_not_called_delivered(
    problem: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recorder.Recorder, "_work", lambda self: None)
    monkeypatch.setattr(
        recorder.Recorder, "finish", lambda self, status: recorder.Delivery(None, problem)
    )
    requested = config(tmp_path)
    uri = tracking_uri(None, requested.store)
    unknown = resolve.trained_ref("ours", save_small_model(tmp_path / "model"), run_id="0" * 32)
    found = _gather([], [(unknown, 0)], requested, {})
    assert not _publish(found, {}, requested, uri, [(unknown, 0)], plain_console())
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
    assert "MLflow does not have it yet" in line
    assert (problem or "0" * 32) in line


def test_shares_of_the_labels_have_names_of_their_own() -> None:
    shares = (1.0, 0.1, 0.07, 0.01, 0.014, 0.006)
    assert [probes.percent(s) for s in shares] == ["100%", "10%", "7%", "1%", "1.4%", "0.6%"]
    for settings in (ProbeSettings, FinetuneSettings):
        with pytest.raises(ValueError, match=r"label_shares is \(0.5, 0.5\); each must occur once"):
            settings(label_shares=(0.5, 0.5))


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_the_largest_share_of_the_labels_counts_in_whatever_order_they_are_given(task: str) -> None:
    shares = {"10%": 0.2, "100%": 0.5, "1%": 0.1}
    ending = "" if task == "linear" else " (30)"
    more = {"layer": "e6"} if task == "linear" else {}
    rows = [
        {"model": "a", "labels": name + ending, **more, "accuracy": results.summary([score])}
        for name, score in shares.items()
    ]
    section = {"title": "t", "task": task, "rows": rows}
    (cells,) = report.overview([section]).cells
    assert cells[1].startswith("50.0%")
    if task == "linear":
        grid = report.main_grid(section)
        assert "100%" in grid.caption and grid.cells == [["a", "50.0%"]]
        (axes,) = charts.lines(rows[1:2]).axes
        assert axes.lines[0].get_ydata().tolist() == [50]
    else:  # a chart for each share
        groups = report.groups_of(section)
        assert [group.title for group in groups] == [f"labels {name} (30)" for name in shares]
        assert [[dot.value for dot in group.dots] for group in groups] == [[20], [50], [10]]


def test_probes_with_few_labels_keep_their_shares_apart() -> None:
    rng = np.random.default_rng(0)
    split = probes.Split({"e6": rng.random((400, 4), np.float32)}, np.arange(400) % 2)
    settings = ProbeSettings(label_shares=(0.014, 0.006))
    told: list[str] = []
    measured = probes.linear(split, split, 2, settings, seed=0, tell=told.append)
    assert told == ["probe of e6, 1.4% of the labels", "probe of e6, 0.6% of the labels"]
    assert [row["labels"] for row in measured.rows] == ["1.4%", "0.6%"]
    assert len(measured.notes["penalty"]) == 2


def test_the_closing_table_shows_every_name_and_number_in_a_log() -> None:
    names = ["mean colour", "neighbour, these features of the network", "ours"]
    rows = [
        {"model": "", "method": name, "holes": "central"}
        | {n: results.summary([0.1234, 0.2345 + at]) for n in (*METRICS, "pictures")}
        for at, name in enumerate(names)
    ]
    section = {"title": "inpainting, d", "task": "inpainting", "rows": rows}
    log = io.StringIO()
    _table({"sections": [section]}, Console(file=log, width=80))
    told = log.getvalue()
    grid = report.main_grid(section)
    for text in " ".join(cell for row in grid.cells for cell in row).split():
        assert text in told
    assert max(map(len, told.splitlines())) <= 80


def test_a_table_that_is_too_wide_comes_in_parts() -> None:
    layers = [f"conv{number}" for number in range(1, 13)]
    rows = [
        {"model": model, "labels": "100%", "layer": layer, "accuracy": results.summary([score, 1])}
        for model, score in (("ours with a long name", 0.25), ("random", 0.125))
        for layer in layers
    ]
    section = {"title": "linear, photos", "task": "linear", "rows": rows}
    for width in (30, 80, 200):
        log = io.StringIO()
        _table({"sections": [section]}, Console(file=log, width=width))
        told = log.getvalue()
        assert max(map(len, told.splitlines())) <= width
        assert all(re.search(rf"\b{layer}\b", told) for layer in layers)
        assert told.count("62.5%") == told.count("56.2%") == len(layers)
        assert told.count("random") == told.count("linear, photos") > (width < 200)


def test_repetitions_of_a_row_are_pooled() -> None:
    pooled = results.over_seeds([[{"model": "a", "x": 1.0}], [{"model": "a", "x": 3.0}]])
    (row,) = pooled
    assert row["x"]["mean"] == 2.0 and row["x"]["std"] == pytest.approx(np.sqrt(2))


def test_a_missing_score_is_not_available_in_every_form() -> None:
    (row,) = results.over_seeds([[{"model": "a", "holes": "central", "L1": None}]])
    assert row["L1"] == {"mean": None, "std": None, "values": []}
    assert report._cell("L1", row["L1"]) == "n/a"
    section = {"title": "t", "rows": [row], "task": "inpainting"}
    assert metrics_of({"sections": [section]}) == {}


@pytest.mark.parametrize("left", [b'{"rows": [', b"", b"\xff\xfe"])
def test_a_result_that_was_cut_is_named_with_what_to_do(left: bytes, tmp_path: Path) -> None:
    results.commit(str(tmp_path), results.Measured([], {}, {}))
    (tmp_path / "commit.json").write_bytes(left)
    with pytest.raises(UserError, match=r"commit\.json is no JSON: .* or delete it and give"):
        results.find_committed(str(tmp_path))


def test_the_second_of_two_equal_commits_changes_nothing(tmp_path: Path) -> None:
    first = results.Measured([{"x": float("nan")}], {}, {"title": b"png"})
    results.commit(str(tmp_path), first)
    results.commit(str(tmp_path), results.Measured([{"x": 2.0}], {}, {}))
    kept = results.find_committed(str(tmp_path))
    assert kept is not None and kept.rows == [{"x": None}]
    assert results.read_figures(str(tmp_path)) == {"title": b"png"}


@pytest.mark.parametrize(
    "name", ["evaluate", "evaluate_smoke", "voc07_classification", "voc_detection"]
)
def test_the_configs_of_the_project_parse(name: str) -> None:
    file = ROOT / "configs" / f"{name}.yaml"
    found = parse(EvaluateConfig, ["--config", str(file), "--model", "random", "--data", "d"])
    assert found.model == ("random",)


@pytest.mark.parametrize(
    ("rates", "said"), [((1e-3, 1e-4), "was chosen on a fifth"), ((3e-4,), "was given, 0.0003.")]
)
def test_the_report_says_how_a_learning_rate_came_about(
    rates: tuple[float, ...], said: str, tmp_path: Path
) -> None:
    tuning = HeadTrainingSettings(learning_rates=rates)
    about = _about("finetune", config(tmp_path, finetune=FinetuneSettings(tuning=tuning)))
    assert about.startswith("All layers fine-tuned; ") and said in about
    assert "learning rate" not in _about("linear", config(tmp_path))


def test_the_voc_protocol_is_that_of_the_paper() -> None:
    file = ROOT / "configs" / "voc07_classification.yaml"
    found = parse(EvaluateConfig, ["--config", str(file), "--model", "random", "--data", "d"])
    tuning = found.finetune.tuning
    assert (found.finetune.crops, found.finetune.scale) == (10, (0.5, 2.0))
    assert (tuning.optimizer, tuning.steps, tuning.batch_size) == ("sgd", 80_000, 16)
    assert (tuning.learning_rates, tuning.weight_decay) == ((1e-3,), 1e-6)
    assert (tuning.decay_every, tuning.decay, tuning.clip) == (10_000, 0.5, 10.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "tasks is empty"),
        ({"seeds": (1, 1)}, "seeds is .* each must occur once"),
        ({"tasks": ("knn", "knn")}, "tasks is .* each must occur once"),
        ({"cpus_per_task": 0}, "cpus_per_task is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**{"model": ("random",), "data": ("d",), **changes})


ALEXNET = NetworkConfig(preset="alexnet", output="full")


def probe(data: Path, network: NetworkConfig, **changes: Any) -> list[results.Row]:
    settings = ProbeSettings(k=1, values=256, label_shares=(1.0,), **changes)
    requested = EvaluateConfig(
        model=("random",), data=(str(data),), tasks=("knn",), frozen=settings
    )
    subject = resolve.untrained_ref("random", "random", network)
    job = Job(
        task="knn", subject=subject, holes=(), data_uri=str(data), database_uri=None, seed=0, uri=""
    )
    return measure.measure_job(job, requested).rows


def test_a_probe_reads_images_at_the_side_and_with_the_statistics_it_is_told(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], float]] = []

    def spied(encoder: torch.nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = layer_features(encoder, x)
        seen.append((tuple(x.shape[2:]), float(features["conv1"].std())))
        return features

    monkeypatch.setattr(probes, "layer_features", spied)
    data = evaluated / "data"
    rows = probe(data, ALEXNET, side=SMALLEST_SIDE)
    assert [row["layer"] for row in rows][-1] == "pool5" and seen[0][0] == (67, 67)
    probe(data, ALEXNET, side=67, batch_norm="trained")
    # The positive half of a normal variable of variance 1 has a deviation of 0.58.
    assert seen[0][1] == pytest.approx(0.58, abs=0.1)
    assert seen[-1][1] != pytest.approx(0.58, abs=0.1)


def test_the_encoder_of_unet_is_probed_layer_by_layer(evaluated: Path) -> None:
    rows = probe(evaluated / "data", NetworkConfig(preset="unet", output="full"))
    assert [row["layer"] for row in rows] == ["e1", "e2", "e3", "e4", "e5"]


def test_a_side_is_refused_where_nothing_would_be_left(evaluated: Path) -> None:
    with pytest.raises(ValueError, match=r"frozen\.side is 66 px; it must be 67 or more"):
        ProbeSettings(side=SMALLEST_SIDE - 1)
    with pytest.raises(UserError, match=r"knn at frozen\.side 128.*needs an encoder of preset ale"):
        probe(evaluated / "data", SMALL, side=128)
