"""Names of models: folders, stages, checkpoints, runs, registered models; and trained baselines."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import SMALL, save_small_model
from rich.console import Console

from ce_model import kmeans
from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import (
    Networks,
    Objective,
    Optimization,
    default_objective,
    estimate_statistics,
    make_optimizers,
    state_tensors,
)
from ce_model.transfer import initialisation
from pipelines import storage
from pipelines.data.manifest import MANIFEST, read_manifest
from pipelines.data.stream import batches, stream
from pipelines.data.stream_plan import StreamPlan
from pipelines.errors import UserError
from pipelines.evaluation import baselines, encoders, executor
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.settings import BaselineSettings
from pipelines.models import checkpoint, files, resolve
from pipelines.models.resolve import resolve_model
from pipelines.runtime import cluster, progress
from pipelines.tracking import runs
from pipelines.tracking.client import client, global_server, tracking_uri
from pipelines.tracking.models import log_model


def named(ref: str, folder: Path) -> resolve.ModelRef:
    store = str(folder / "store")
    return resolve_model(ref, store=store, tracking_uri=tracking_uri(None, store))


def test_a_model_folder_and_its_stage_are_the_same_model(tmp_path: Path) -> None:
    save_small_model(tmp_path / "stage" / "model")
    first = named(str(tmp_path / "stage" / "model"), tmp_path)
    second = named(f"row={tmp_path / 'stage'}", tmp_path)
    assert first.identity == second.identity and (first.name, second.name) == ("stage", "row")


@pytest.mark.parametrize("export", [None, "raw", "ema"])
def test_a_checkpoint_gives_its_generator(export: str | None, tmp_path: Path) -> None:
    generator = build_generator(SMALL, generator=torch.Generator().manual_seed(3))
    networks = Networks(generator, None)
    objective = default_objective(SMALL)
    state = {"network": SMALL.__dict__, "objective": objective.__dict__}
    if export is not None:  # a checkpoint of before there were averages does not say
        state["export"] = export
    wanted = Optimization(ema=0.9 if export else 0.0)
    optimizers = make_optimizers(networks, 1e-3, 0.0, wanted)
    if optimizers.average is not None:
        with torch.no_grad():
            for weight in optimizers.average.module.parameters():
                weight += 1
    tensors = state_tensors(networks, optimizers)
    uri = checkpoint.save(str(tmp_path / "stage"), 7, tensors, state)
    found = encoders.network_of(named(uri, tmp_path), seed=0)
    expected = generator
    if export == "ema":
        assert optimizers.average is not None
        expected = optimizers.average.module
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)


def test_an_altered_checkpoint_is_refused(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), 7, {"generator.x": torch.zeros(2)}, {})
    Path(uri, "state.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="is not what it was when it was written"):
        named(uri, tmp_path)


def test_a_run_and_a_logged_model_lead_to_the_same_weights(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model", key="k")
    uri = tracking_uri(None, str(tmp_path / "store"))
    spec = runs.RunSpec(uri=uri, store=str(tmp_path / "store"), experiment="e", key="k", name="n")
    run_id = runs.ensure_run(spec)
    server = client(uri)
    runs.log_bytes(server, run_id, "summary.json", json.dumps({"model": folder}).encode())
    by_run = named(run_id, tmp_path)
    assert (by_run.uri, by_run.run_id) == (folder, run_id)
    assert named(folder, tmp_path).run_id == run_id  # found by the key that the model keeps

    logged = log_model(uri, run_id, Path(folder), 128, requirements=["numpy"])
    server.create_registered_model("ce")
    with global_server(uri):  # MLflow resolves the source there only
        server.create_model_version("ce", logged, run_id)
    server.set_registered_model_alias("ce", "champion", "1")
    for ref in (logged, "models:/ce@champion", "models:/ce/1"):
        found = named(ref, tmp_path)
        assert (found.sha256, found.run_id) == (by_run.sha256, run_id)
        assert found.uri.startswith(str(tmp_path / "store"))


def test_a_run_and_a_model_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model is run '{'0' * 32}', from which"):
        named("0" * 32, tmp_path)
    with pytest.raises(UserError, match="model is 'models:/nothing@champion', which"):
        named("models:/nothing@champion", tmp_path)
    for baseline in resolve.BASELINES:  # evaluation draws or trains them; nothing else has them
        with pytest.raises(UserError, match=f"model is '{baseline}', which only jobs/evaluate"):
            named(baseline, tmp_path)


def away(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return "http://127.0.0.1:9"  # nothing listens there


def test_a_model_folder_needs_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = away(monkeypatch)
    folder = save_small_model(tmp_path / "model", key="k")
    assert resolve_model(folder, store=str(tmp_path), tracking_uri=uri).run_id is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: MLflow did not answer, so the run of '{folder}' is not known")


@pytest.mark.parametrize("ref", ["0" * 32, "models:/ce@champion"])
def test_a_server_that_is_away_is_one_message_where_it_is_needed(
    ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 (gives no|does not give)"):
        resolve_model(ref, store=str(tmp_path), tracking_uri=away(monkeypatch))


def test_a_database_that_is_none_is_a_server_that_is_away(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database " * 500)
    uri = f"sqlite:///{tmp_path}/broken.db"
    folder = save_small_model(tmp_path / "model", key="k")
    assert resolve_model(folder, store=str(tmp_path), tracking_uri=uri).run_id is None
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow did not answer") and "not a database" in line
    for ref in ("0" * 32, "models:/ce@champion"):
        with pytest.raises(UserError, match="not a database") as refusal:
            resolve_model(ref, store=str(tmp_path), tracking_uri=uri)
        assert len(str(refusal.value).splitlines()) == 1


def test_one_name_for_two_models_is_refused_unless_it_is_their_label(tmp_path: Path) -> None:
    first, second = (
        save_small_model(tmp_path / name / "step-00000200", seed)
        for seed, name in enumerate(("a", "b"))
    )

    def check(*refs: str) -> None:
        encoders.require_distinct(
            {
                ref: None
                if ref.endswith("random")
                else resolve.trained_ref(*resolve.resolve_named(ref))
                for ref in refs
            }
        )

    for refs in (
        (first, second),
        (f"step-00000200={first}", second),
        ("random", f"random={first}"),
    ):
        with pytest.raises(UserError, match=r"would all be the row '.*'; label them"):
            check(*refs)
    check(first, f"b={second}", "random", "r=random")
    check(f"row={first}", f"row={second}")  # repetitions
    check(first, f"{first}/")  # the same model


def test_kmeans_filters_are_drawn_from_images_of_all_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def initialise(layers: list[torch.nn.Module], forward: Any, **rest: Any) -> None:
        layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].mean((1, 2, 3))))
        forward()

    monkeypatch.setattr(initialisation, "initialise", initialise)
    monkeypatch.setattr(encoders, "KMEANS_IMAGES", 2)
    dark, light = (torch.full((2, 3, 128, 128), shade) for shade in (-1.0, 1.0))
    encoders.encoder_of(resolve.untrained_ref("k", "random-kmeans", SMALL), 0, [dark, light])
    assert seen[0].tolist() == [-1.0, 1.0]


def test_random_weights_follow_the_seed_and_kmeans_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kmeans, "PATCHES", 500)
    network = NetworkConfig(preset="alexnet", output="full")
    gaussian = resolve.untrained_ref("r", "random", network)
    drawn = resolve.untrained_ref("k", "random-kmeans", network)
    x = torch.rand(2, 3, 227, 227, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, again, other = (
        encoders.encoder_of(gaussian, seed, [x]).conv1.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert gaussian.identity != drawn.identity
    stripes = x.clone()
    stripes[..., ::2] = -1
    plain, striped = (encoders.encoder_of(drawn, 0, [p]).conv1.weight for p in (x, stripes))
    assert not torch.allclose(plain, striped)


@pytest.mark.parametrize("kind", ["autoencoder", "supervised"])
def test_a_baseline_is_the_same_whenever_it_is_trained(
    kind: baselines.Kind, dataset_uri: str, tmp_path: Path
) -> None:
    settings = BaselineSettings(steps=2, batch_size=16, shorter=144)
    digests = [
        baselines.train(kind, SMALL, dataset_uri, settings, 0, torch.float32, str(tmp_path / name))
        for name in ("a", "b")
    ]
    assert digests[0] == digests[1]
    fresh = build_generator(SMALL, generator=torch.Generator().manual_seed(0)).state_dict()
    trained = files.load_model(str(tmp_path / "a")).generator.state_dict()
    changed = [key for key in fresh if not torch.equal(fresh[key], trained[key])]
    assert "encoder.e1.0.weight" in changed
    assert ("decoder.d2.0.weight" in changed) == (kind == "autoencoder")


def test_baselines_show_their_steps_while_they_train(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    settings = BaselineSettings(steps=25, batch_size=4, shorter=144)
    config = EvaluateConfig(model=("autoencoder",), data=(dataset_uri,), baseline=settings)
    out = io.StringIO()
    uri = str(tmp_path / "model")
    requested = ("autoencoder", SMALL, dataset_uri, settings, 0, "fp32")
    evaluation = executor.Executor(config, cluster.resources(), Console(file=out))
    evaluation.train({uri: requested})
    assert storage.exists(storage.join(uri, files.MODEL))
    said = out.getvalue()
    shown = [int(step) for step in re.findall(r"baselines \(1\), step (\d+)/25", said)]
    assert shown == sorted(shown) and {10, 20, 25} & set(shown), said
    evaluation.train({uri: requested})  # it is there: nothing is trained and nothing is said
    assert out.getvalue() == said


def test_a_row_of_several_trainings_gives_each_of_them_one_seed() -> None:
    network = NetworkConfig(preset="alexnet", output="full")
    alone, *others = (
        resolve.ModelRef(
            name=name, kind="model", uri=name, sha256="", identity=number, network=network
        )
        for name, number in (("alone", "0"), ("row", "1"), ("row", "2"), ("row", "3"))
    )
    found = executor.pair_with_baselines([alone, *others], (7, 8, 9))
    assert [(s.identity, seed) for s, seed in found] == [
        ("0", 7), ("0", 8), ("0", 9), ("1", 7), ("2", 8), ("3", 9),
    ]  # fmt: skip
    assert [seed for _, seed in executor.pair_with_baselines(others, (7,))] == [7, 7, 7]
    twin = replace(alone, uri="the same by another reference")
    assert [
        (s.identity, seed) for s, seed in executor.pair_with_baselines([alone, twin], (7,))
    ] == [("0", 7)]


def test_an_autoencoder_ends_with_statistics_without_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = NetworkConfig(preset="alexnet", output="full")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 227, 227, 3)).astype(np.uint8)
    read = [{"image": image, "augment": np.zeros(4, np.int64)} for image in pixels]
    monkeypatch.setattr(baselines, "batches", lambda plan: iter(read))
    objective = Objective(adversarial=0.0, overlap=0, region="image", fill=(0.0, 0.0, 0.0))
    generator = build_generator(network, generator=torch.Generator().manual_seed(0))
    settings = BaselineSettings(steps=2, batch_size=4)
    baselines._reconstruct(
        generator,
        None,  # type: ignore[arg-type]
        objective,
        network,
        settings,
        torch.float32,
        lambda steps: None,
    )
    found = {name: value.clone() for name, value in generator.named_buffers()}
    image = torch.from_numpy(pixels.reshape(8, 227, 227, 3))
    estimate_statistics(
        generator, image, torch.zeros(image.shape[:3], dtype=torch.bool),
        network=network, objective=objective, dtype=torch.float32,
    )  # fmt: skip
    assert all(torch.equal(value, found[name]) for name, value in generator.named_buffers())


def test_baselines_read_the_batches_of_pretraining(dataset_uri: str) -> None:
    manifest = read_manifest(dataset_uri)
    plan = StreamPlan(
        uri=dataset_uri, manifest=manifest, strategy="central", side=128, shorter=0,
        batch_size=16, num_workers=1, steps=3, seed=4,
    )  # fmt: skip
    ours = list(baselines.batches(plan))
    theirs = list(batches(stream(plan), plan))
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["row"], b["row"])


def test_supervised_training_wants_classes(dataset_uri: str, tmp_path: Path) -> None:
    raw = storage.read_json(storage.join(dataset_uri, MANIFEST))
    copy = tmp_path / "unlabelled"
    copy.mkdir()
    storage.publish_json(str(copy / MANIFEST), {**raw, "classes": []})
    settings = BaselineSettings(steps=1, batch_size=16)
    with pytest.raises(UserError, match="'supervised' needs labels"):
        baselines.train(
            "supervised", SMALL, str(copy), settings, 0, torch.float32, str(tmp_path / "m")
        )
    assert not (tmp_path / "m").exists()
