"""The pretraining stage from end to end on a tiny dataset, with deaths on the way."""

import errno
import io
import resource
import shutil
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import ray
import torch
import torch.distributed
import torch.multiprocessing
from mlflow.exceptions import MlflowException
from rich.console import Console
from training_helpers import signalling_a_worker

from ce_model.masks import Strategy
from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Networks, Optimization, default_objective
from pipelines import storage
from pipelines.data.manifest import default_masks, read_manifest
from pipelines.errors import UserError
from pipelines.models import checkpoint, files
from pipelines.pretrain import ddp, worker
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.driver import DriverWatch
from pipelines.pretrain.fit import scaling_config
from pipelines.pretrain.key import NOT_IN_KEY, pretrain_key
from pipelines.pretrain.messages import CurvePoint, Diverged, PanelReady
from pipelines.pretrain.recipe import resolve_recipe
from pipelines.pretrain.run import pretrain_model
from pipelines.pretrain.task import Task
from pipelines.promotion import run_files
from pipelines.runtime.cluster import Resources
from pipelines.runtime.mailbox import Failure, create_mailbox
from pipelines.storage.commits import COMMIT
from pipelines.tracking import runs
from pipelines.tracking.client import client, global_server, tracking_uri

run_module = sys.modules[pretrain_model.__module__]

STEPS, EVERY = 24, 8
DRIFTS = (0.0, 1e-6)  # of a weight between two ranks


def make_config(folder: Path, **changes: Any) -> PretrainConfig:
    config = PretrainConfig(
        bottleneck=32,
        steps=STEPS,
        batch_size=8,
        checkpoint_every=EVERY,
        keep_checkpoints=9,
        log_every=4,
        validation_images=12,
        threads_per_worker=1,
    )
    return replace(config, **{"store": str(folder), **changes})


def final_tensors(summary: dict[str, Any]) -> dict[str, torch.Tensor]:
    stage, step = summary["checkpoint"].rsplit("/checkpoints/step-")
    return checkpoint.at_step(stage, int(step)).tensors()


def assert_bitwise_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    first, second = final_tensors(left), final_tensors(right)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def history(summary: dict[str, Any], metric: str) -> list[tuple[int, float]]:
    server = client(summary["tracking_uri"])
    points = server.get_metric_history(summary["tracking_run_id"], metric)
    return [(point.step, point.value) for point in points]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture(scope="module")
def unbroken(dataset_uri: str, store: Path) -> dict[str, Any]:
    return pretrain_model(make_config(store), dataset_uri)


def stage_of(config: PretrainConfig, uri: str) -> Path:
    key = pretrain_key(config, read_manifest(uri))
    return Path(config.store) / "pretrain" / key[:16]


def test_a_run_measures_what_it_promises(unbroken: dict[str, Any]) -> None:
    promised = {
        "dataset_fingerprint", "steps", "images_per_second", "data_wait_share",
        "peak_memory_bytes", "tracking_run_id", "checkpoint", "panel", "validation",
        "preset", "strategy", "seed", "start",
    }  # fmt: skip
    assert promised <= unbroken.keys()
    assert unbroken["steps"] == STEPS
    assert 0 <= unbroken["data_wait_share"] < 1
    assert 10e6 < unbroken["peak_memory_bytes"] < 20e9
    assert np.isfinite(list(unbroken["validation"].values())).all()
    assert Path(unbroken["panel"]).read_bytes().startswith(b"\x89PNG")


def test_curves_and_lineage_are_in_mlflow(unbroken: dict[str, Any]) -> None:
    server = client(unbroken["tracking_uri"])
    run = server.get_run(unbroken["tracking_run_id"])
    assert run.info.status == "FINISHED"
    expected = {
        "loss/reconstruction", "loss/adversarial", "loss/discriminator", "loss/joint",
        "discriminator/real", "discriminator/fake", "discriminator/accuracy",
        "grad_norm/generator", "grad_norm/discriminator", "learning_rate/generator",
        "learning_rate/discriminator", "images_per_second", "data_wait_share",
        "validation/l1_hole", "validation/l2_hole", "validation/psnr_hole",
    }  # fmt: skip
    assert expected <= run.data.metrics.keys()
    losses = history(unbroken, "loss/joint")
    assert [step for step, _ in losses] == list(range(4, STEPS + 1, 4))
    assert losses[-1][1] < losses[0][1]  # it learned something
    assert run.data.params["batch_size"] == "8"
    assert run.data.tags["dataset_fingerprint"] == unbroken["dataset_fingerprint"]
    assert run.inputs.dataset_inputs[0].dataset.digest == unbroken["dataset_fingerprint"][:36]
    assert "mlflow.source.git.commit" in run.data.tags
    names = {entry.path for entry in server.list_artifacts(unbroken["tracking_run_id"])}
    assert {"panel.png", "images", "summary.json"} <= names
    panels = server.list_artifacts(unbroken["tracking_run_id"], "images")
    assert any("panel+step+0+" in panel.path for panel in panels)  # from the first minute on
    assert "None" not in run.data.params.values()
    assert run.data.params["strategy"] == unbroken["strategy"]


def test_the_logged_model_fills_holes_and_gives_features(
    unbroken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with global_server(unbroken["tracking_uri"]):
        model = mlflow.pyfunc.load_model(unbroken["model_uri"])
    image = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3)).astype(np.uint8)
    mask = np.zeros((3, 128, 128), np.uint8)
    mask[:, 32:96, 32:96] = 1
    answer = model.predict({"image": image, "mask": mask})
    assert answer["features"].shape == (3, 32)
    changed = (answer["filled"] != image).any(axis=3)
    assert changed.any(axis=(1, 2)).all()
    assert not changed[mask == 0].any()


def test_the_same_command_again_trains_nothing(
    unbroken: dict[str, Any],
    store: Path,
    dataset_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "fit_or_raise", lambda *_: pytest.fail("it trains"))
    config = make_config(store, summary=str(tmp_path / "summary.json"), log_every=7)
    assert pretrain_model(config, dataset_uri) == unbroken
    assert storage.read_json(str(tmp_path / "summary.json")) == unbroken


def test_a_killed_worker_costs_nothing_but_time(
    unbroken: dict[str, Any], dataset_uri: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path)
    with signalling_a_worker(
        stage_of(config, dataset_uri), EVERY, signal.SIGKILL, rank=0
    ) as killed:
        summary = pretrain_model(config, dataset_uri)
    assert killed
    assert summary["restarts"] == 1
    assert_bitwise_equal(unbroken, summary)
    assert summary["validation"] == unbroken["validation"]
    assert history(summary, "loss/joint") == history(unbroken, "loss/joint")


@pytest.mark.slow  # a minute; what is final is in the tests below
def test_a_damaged_dataset_is_one_message(
    dataset_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = str(shutil.copytree(dataset_uri, tmp_path / "damaged"))
    for shard in Path(uri, "train").glob("*.parquet"):
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        pretrain_model(make_config(tmp_path), uri)
    message = str(caught.value)
    assert message.startswith(f"training stopped: '{uri}' does not hold what its manifest says")
    assert "Failed to apply" not in message
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_would_fail_again_is_not_tried_again(ray_cluster: None) -> None:
    mailbox = create_mailbox()
    settings = {"task": None, "mailbox": mailbox}
    ray.get(mailbox.fail.remote(Failure("the storage is away", final=False)))
    with pytest.raises(RuntimeError, match="cannot be used outside of a Ray Train"):
        worker.train(settings)  # it begins
    ray.get(mailbox.fail.remote(Failure("the disk is full", final=True)))
    ray.get(mailbox.fail.remote(Failure("a neighbour is gone", final=False)))
    worker.train(settings)
    assert ray.get(mailbox.failure.remote()).reason == "the disk is full"
    ray.kill(mailbox)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (UserError("a damaged dataset"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError("the storage is away"), False),
        (FileNotFoundError("a checkpoint that was removed"), False),
        (ZeroDivisionError("a fault of the program"), None),
    ],
)
def test_only_what_would_end_the_same_way_is_final(
    error: Exception,
    final: bool | None,
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "_train", failing)
    told: list[Failure] = []
    mailbox = SimpleNamespace(
        failure=SimpleNamespace(remote=lambda: ray.put(None)),
        fail=SimpleNamespace(remote=lambda failure: ray.put(told.append(failure))),
    )
    with pytest.raises(type(error), match=str(error.args[-1])):
        task = SimpleNamespace(stage_uri=str(tmp_path))
        worker.train({"task": task, "mailbox": mailbox})
    assert [failure.final for failure in told] == ([] if final is None else [final])
    assert all(str(error.args[-1]) in failure.reason for failure in told)


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(str(tmp_path), 3, {"weight": torch.zeros(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert checkpoint.latest(str(tmp_path)) is None


@pytest.mark.slow  # the recorder alone is in test_tracking.py
def test_an_absent_tracking_server_costs_no_step_and_gets_all_later(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "DELIVERY_WAIT_S", 2.0)
    away = make_config(tmp_path, steps=8, tracking_uri="http://127.0.0.1:9")  # nobody listens
    summary = pretrain_model(away, dataset_uri)
    assert summary["steps"] == 8 and summary["tracking_run_id"] is None
    assert not list(tmp_path.glob("pretrain/*/commit.json"))
    began = time.monotonic()
    back = pretrain_model(replace(away, tracking_uri=None), dataset_uri)
    assert time.monotonic() - began < back["train_seconds"] + 60
    assert back["restarts"] == 0  # delivered from the checkpoint, not trained again
    assert back["weights_sha256"] == summary["weights_sha256"]
    assert [step for step, _ in history(back, "loss/joint")] == [4, 8]
    assert list(tmp_path.glob("pretrain/*/commit.json"))


def test_a_server_that_goes_away_after_training_gets_model_summary_and_curve_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tracking_uri(None, str(tmp_path))
    spec = runs.RunSpec(uri=uri, store=str(tmp_path), experiment="e", key="k", name="n")
    stage = str(tmp_path / "stage")
    task: Any = SimpleNamespace(
        stage_uri=stage,
        plan=SimpleNamespace(steps=STEPS, side=128),
        recipe=SimpleNamespace(network=NetworkConfig()),
    )
    steps = [100, 200, 300]
    points = [{"step": at, "time": 0.0, "values": {"discriminator/accuracy": 1.0}} for at in steps]
    trained = checkpoint.Checkpoint(stage, STEPS, {"history": points})
    monkeypatch.setattr(checkpoint, "latest", lambda stage_uri: trained)
    monkeypatch.setattr(run_module, "export_model", lambda *_: {"model": "m"})

    def away(*_: Any) -> str:
        raise MlflowException("nobody answers")

    nothing: Any = None  # a training that has ended needs no cluster
    for log_model, status in ((away, "RUNNING"), (lambda *_: "models:/m-1", "FINISHED")):
        monkeypatch.setattr(run_module, "log_trained_model", log_model)
        screen = io.StringIO()
        summary = run_module._train(
            PretrainConfig(), task, nothing, spec=spec, console=Console(file=screen)
        )
        run_id = summary["tracking_run_id"]
        assert client(uri).get_run(run_id).info.status == status
        finished = status == "FINISHED"
        assert ("rerun the same command" in " ".join(screen.getvalue().split())) != finished
        assert Path(stage, COMMIT).exists() == finished
    assert run_files.summary(uri, run_id) == summary
    assert summary["model_uri"] == "models:/m-1"
    curve = history({"tracking_uri": uri, "tracking_run_id": run_id}, "discriminator/accuracy")
    assert curve == [(at, 1.0) for at in steps]
    collapsed = client(uri).get_run(run_id).data.tags["alarm.collapse"]
    assert collapsed.startswith("discriminator accuracy above 0.99 for 300 steps")


def test_a_server_that_goes_away_between_model_and_summary_gets_no_second_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NetworkConfig(bottleneck=8)
    generator = build_generator(network, generator=torch.Generator().manual_seed(0))
    folder = str(tmp_path / "model")
    files.save_model(folder, generator, network, default_objective(network), {})
    uri = tracking_uri(None, str(tmp_path))
    run_id = runs.ensure_run(
        runs.RunSpec(uri=uri, store=str(tmp_path), experiment="e", key="k", name="n")
    )
    log_bytes = runs.log_bytes

    def away(*_: Any) -> None:
        raise MlflowException("nobody answers")

    uris = []
    for log, there in ((away, False), (log_bytes, True)):
        monkeypatch.setattr(runs, "log_bytes", log)
        summary = {
            "tracking_run_id": run_id, "model": folder, "preset": "inpaint", "strategy": "central",
            "steps": 8, "batch_size": 16, "training_images": 150, "validation": {},
        }  # fmt: skip
        assert (run_module._log_result(uri, summary, network) is None) == there
        uris.append(summary["model_uri"])
    server = client(uri)
    run = server.get_run(run_id)
    (model,) = server.search_logged_models([run.info.experiment_id])
    assert uris == [model.model_uri] * 2
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert run_files.summary(uri, run_id) == summary


def test_a_run_that_diverged_is_one_message_and_is_not_committed(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str | None] = []

    def finish(status: str | None, wait_s: float) -> Any:
        ended.append(status)
        return SimpleNamespace(problem=None)

    def diverging(config: Any, task: Any, scaling: Any, mailbox: Any) -> None:
        mailbox.post.remote(Diverged(step=12, updates=10))

    monkeypatch.setattr(
        run_module,
        "Recorder",
        lambda spec, tell: SimpleNamespace(begin=lambda wait_s: None, finish=finish),
    )
    monkeypatch.setattr(run_module, "fit_or_raise", diverging)
    task: Any = SimpleNamespace(stage_uri=str(tmp_path), plan=SimpleNamespace(steps=STEPS))
    nothing: Any = None
    with pytest.raises(UserError, match="diverged: up to step 12, 10 updates in a row were not"):
        run_module._train(PretrainConfig(), task, Resources(4, 0), nothing, Console())
    assert ended == ["FAILED"]
    assert not Path(tmp_path, COMMIT).exists()


def test_a_panel_that_cannot_be_stored_stops_no_curve(tmp_path: Path) -> None:
    recorded: list[Any] = []
    recorder: Any = SimpleNamespace(
        metrics=lambda values, step, time: recorded.append(step),
        artifact=lambda path, data: recorded.append(path),
        image=lambda key, step, png: recorded.append((key, step)),
    )
    (tmp_path / "stage").write_bytes(b"no folder")
    task: Any = SimpleNamespace(
        stage_uri=str(tmp_path / "stage"),
        plan=SimpleNamespace(steps=STEPS),
        recipe=resolve_recipe(PretrainConfig()),
    )
    screen = io.StringIO()
    watch = DriverWatch(PretrainConfig(), task, recorder, Console(file=screen))
    image = np.zeros((1, 8, 8, 3), np.uint8)
    images = dict.fromkeys(("input", "output", "target"), image)
    watch._take(
        [
            PanelReady(8, {**images, "hole": image[..., 0] > 0}),
            CurvePoint(8, 0.0, {"loss/joint": 1.0}),
        ]
    )
    assert recorded == [("panel", 8), "panel.png", 8]
    assert "warning: the panel of step 8 is not in the store" in " ".join(screen.getvalue().split())


@pytest.mark.slow  # a minute; ranks that share a step are in ce_model/test_training.py
def test_two_workers_train_one_network(dataset_uri: str, tmp_path: Path) -> None:
    # The ranks compare the bits of their parameters at every checkpoint and fail if they differ.
    summary = pretrain_model(
        make_config(tmp_path, num_workers=2, steps=8, max_failures=0), dataset_uri
    )
    assert summary["num_workers"] == 2
    assert summary["restarts"] == 0
    assert np.isfinite(summary["validation"]["psnr_hole"])


def _drifting_rank(rank: int, address: str, noticed: Any) -> None:
    """Note the drifts at which this rank is stopped, a bit each."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    module = torch.nn.Linear(2, 2)
    for bit, drift in enumerate(DRIFTS):
        with torch.no_grad():
            module.weight.fill_(1.0 + rank * drift)
            module.bias.zero_()
        try:
            ddp.require_equal_parameters(Networks(module, None))
        except RuntimeError:
            noticed[rank] |= 1 << bit
    torch.distributed.destroy_process_group()


def test_ranks_that_drift_apart_are_noticed(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    noticed = context.Array("i", [0, 0])
    address = f"file://{tmp_path}/rendezvous"
    ranks = [
        context.Process(target=_drifting_rank, args=(rank, address, noticed)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert list(noticed) == [0b10, 0b10]


@pytest.mark.slow  # half a minute; the step without a discriminator is in test_training.py
def test_without_an_adversarial_weight_there_is_no_discriminator(
    dataset_uri: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path, adversarial=0.0, steps=8, strategy="random_region")
    summary = pretrain_model(config, dataset_uri)
    assert not any("discriminator" in name for name in final_tensors(summary))
    run = client(summary["tracking_uri"]).get_run(summary["tracking_run_id"])
    assert not any("discriminator" in name for name in run.data.metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "alexnet", "bottleneck": None}, "no column mask_random_region_227"),
        ({"num_workers": 8, "batch_size": 16}, "num_workers is 8; the cluster has 4 CPUs"),
        ({"batch_size": 160}, "only 150 training images"),
        ({"store": "s3://bucket/store"}, "name the tracking server"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    changes: dict[str, Any], message: str, dataset_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain_model(make_config(tmp_path, **changes), dataset_uri)
    left = [path for path in tmp_path.glob("pretrain/*/*") if path.name != "lease"]
    assert not left  # the lease is taken before the cluster is asked, and given back


def test_a_folder_without_manifest_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match="not a prepared dataset"):
        pretrain_model(make_config(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9, "num_workers": 2}, "multiple of num_workers 2"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"norm": "lrn"}, "network.norm is lrn"),
        ({"adversarial": 2.0}, "objective.adversarial is 2.0"),
        ({"batch_size": 2, "num_workers": 2}, "at least 2 images per worker"),
        ({"batch_size": 8, "accumulate": 3}, "num_workers 1 x accumulate 3 = 3"),
        ({"batch_size": 4, "accumulate": 4}, "4 for 1 workers in 4 parts; preset inpaint needs"),
        ({"accumulate": 0}, "accumulate is 0; it must be 1 or more"),
        ({"probe_every": 300}, "probe_every is 300; it must be a multiple of checkpoint_every"),
        ({"log_to": ("tensorboard",)}, "log_to is .*; it must have mlflow"),
        ({"num_workers": "4:1"}, "num_workers is 4:1; it must be 1 or more, or a range that rises"),
        ({"num_workers": 0}, "num_workers is 0; it must be 1 or more"),
        ({"num_workers": "2:5"}, "multiple of num_workers 5"),
        ({"cache_folder": "/fast", "cache_gb": 0.0}, "cache_gb is 0.0; it must be a finite number"),
        ({"cache_gb": 5.0}, "cache_gb is 5.0 without cache_folder; add --cache-folder FOLDER"),
        ({"cache_folder": "fast"}, "cache_folder is 'fast'; it must be an absolute path"),
        ({"cache_folder": "s3://b/c"}, "cache_folder is 's3://b/c'; it must be an absolute path"),
        ({"stall_timeout_s": 0.0}, "stall_timeout_s is 0.0; it must be a finite number above 0"),
        ({"learning_rate": np.nan}, "learning_rate is nan; it must be a finite number above 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be a finite number above 0"),
        ({"discriminator_learning_rate": 0.0}, "discriminator_learning_rate is 0.0; it must be"),
        ({"discriminator_learning_rate": np.inf}, "discriminator_learning_rate is inf"),
        ({"ring_weight": np.inf}, "ring_weight is inf; it must be a finite number above 0"),
        ({"fill": (np.nan, 0.0, 0.0)}, "each value must be 0 to 255"),
        ({"threads_per_worker": 0}, "threads_per_worker is 0; it must be 1 or more"),
        ({"validate_every": 0}, "validate_every is 0; it must be 1 or more"),
        ({"max_failures": -1}, "max_failures is -1; it must be 0 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"seed": 2**64}, f"seed is {2**64}; it must be {2**64 - 1} or less"),
        ({"shorter": -1}, "shorter is -1; it must be 0 or more"),
        ({"shorter": 100}, "shorter is 100 px; it must be 0 or at least 128"),
        (
            {"strategy": "random_block", "region": "hole", "overlap": 16},
            "overlap is 16 px; it must be 0 with random_block holes of inpaint",
        ),
        ({"preset": "alexnet", "strategy": "central", "overlap": 4}, "overlap is 4 px"),
        ({"optimizer": "sgd", "betas": (0.9, 0.95)}, "with optimizer sgd, which has none"),
        ({"momentum": 0.9}, "momentum is 0.9 with optimizer adam"),
        ({"milestones": (5,)}, "schedule is constant with milestones"),
        ({"schedule": "step", "milestones": (2000,)}, "the last must be below steps 2000"),
        ({"warmup_steps": 2001}, "warmup_steps is 2001; it must be at most steps 2000"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be 0 or more"),
        ({"clip_norm": np.nan}, "clip_norm is nan"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0.0; it must be a finite number above 0"),
        ({"scale_learning_rate": "sqrt", "learning_rate": 0.1}, "give one of the two"),
        ({"ema": 1.0}, "ema is 1.0; it must be from 0 to below 1"),
        ({"export": "raw"}, "export is raw; there is one set of weights unless --ema"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, (2e-3, 2e-4)),
        ({"adversarial": 0.0}, (2e-4, 2e-5)),
        ({"adversarial": 1.0}, (2e-4, 2e-4)),  # as train.lua without a reconstruction loss
        ({"adversarial": 1.0, "learning_rate": 1e-3}, (1e-3, 1e-3)),
        ({"adversarial": 1.0, "discriminator_learning_rate": 1e-5}, (2e-4, 1e-5)),
        ({"preset": "alexnet"}, (1e-4, 1e-5)),
        ({"scale_learning_rate": "linear", "batch_size": 256}, (8e-3, 8e-4)),
        ({"scale_learning_rate": "sqrt", "batch_size": 16}, (1e-3, 1e-4)),
        ({"scale_learning_rate": "linear"}, (2e-3, 2e-4)),  # 64 images, as in the paper
        ({"preset": "alexnet", "adversarial": 0.001}, (1e-4, 1e-5)),
        ({"preset": "alexnet", "strategy": "central", "adversarial": 0.001}, (1e-3, 1e-4)),
    ],
)
def test_learning_rates_are_those_of_the_paper(
    changes: dict[str, Any], rates: tuple[float, float]
) -> None:
    assert resolve_recipe(PretrainConfig(**changes)).learning_rates == pytest.approx(rates)


def test_each_worker_takes_a_gpu_where_there_are_gpus() -> None:
    scaling = scaling_config(PretrainConfig(num_workers=2), Resources(cpus=8, gpus=2))
    assert scaling.use_gpu and scaling.num_workers == 2
    with pytest.raises(UserError, match="num_workers is 4; the cluster has 2 GPUs"):
        scaling_config(PretrainConfig(num_workers=4), Resources(cpus=8, gpus=2))


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (2, 2), (16, 4), (64, 1)])
def test_training_on_cpus_leaves_one_for_the_data(cpus: int, workers: int) -> None:
    scaling = scaling_config(PretrainConfig(num_workers=workers), Resources(cpus, gpus=0))
    assert not scaling.use_gpu
    assert workers * scaling.resources_per_worker["CPU"] <= cpus - 1
    assert any(scaling.resources_per_worker.values())  # what takes nothing is not placed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"adversarial": 0.001, "overlap": 4, "region": "hole"}),
        ({"strategy": "random_block"}, {"adversarial": 0.001, "overlap": 0, "region": "image"}),
        ({"preset": "alexnet"}, {"adversarial": 0.0, "overlap": 0, "region": "hole"}),
        ({"fill": (0.0, 9.0, 255.0)}, {"fill": (0.0, 9.0, 255.0)}),
        (
            {"strategy": "random_block", "region": "hole", "adversarial": 0.5, "ring_weight": 2.0},
            {"adversarial": 0.5, "overlap": 0, "region": "hole", "ring_weight": 2.0},
        ),
    ],
)
def test_losses_are_those_of_the_paper_unless_told(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    mean = (1.0, 2.0, 3.0)
    found = resolve_recipe(PretrainConfig(**changes), mean).objective
    usual = {"reconstruction": "l2", "ring_weight": 10.0, "fill": mean}
    assert {name: getattr(found, name) for name in usual | expected} == usual | expected


def test_every_setting_of_a_training_reaches_it_and_its_key(
    dataset_uri: str, tmp_path: Path
) -> None:
    initial = str(tmp_path / "weights.pt")
    torch.save({"weight": torch.zeros(1)}, initial)
    strategies: tuple[Strategy, ...] = ("central", "random_block", "random_region", "grid_60")
    masks = default_masks((128, 227), strategies)
    manifest = replace(read_manifest(dataset_uri), masks=masks)

    def made(**changes: Any) -> tuple[Task, str]:
        config = PretrainConfig(**{"batch_size": 8, "shorter": None, **changes})
        recipe = resolve_recipe(config, manifest.mean_rgb, manifest.rows("train"))
        plan = run_module._plan(config, recipe, dataset_uri, manifest)
        task = run_module._task(config, recipe, plan, "stage")
        return task, pretrain_key(config, manifest)

    of_inpaint = {
        "preset": "alexnet", "strategy": "random_block", "adversarial": 0.0,
        "reconstruction": "l1", "overlap": 2, "ring_weight": 2.0, "fill": (0.0, 0.0, 0.0),
        "bottleneck": 32, "steps": 3, "batch_size": 4, "seed": 1, "learning_rate": 1.0,
        "compile": True, "discriminator_learning_rate": 1.0, "precision": "fp32", "shorter": 0,
        "window_rows": 16, "validation_images": 9, "num_workers": 2, "threads_per_worker": 3,
        "checkpoint_every": 9, "keep_checkpoints": 9, "keep_best": 9, "log_every": 9,
        "validate_every": 9, "profile_steps": 9, "probe_images": 9,
        "optimizer": "adamw", "weight_decay": 0.1, "betas": (0.9, 0.95), "schedule": "cosine",
        "accumulate": 2, "warmup_steps": 5, "clip_norm": 1.0, "ema": 0.9, "crop_area": (0.5, 1.0),
        "flip": False, "colour_jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2,
    }  # fmt: skip
    of_others: dict[str, dict[str, Any]] = {
        "momentum": {"optimizer": "sgd"},
        "milestones": {"schedule": "step"},
        "scale_learning_rate": {"batch_size": 16},
        "export": {"ema": 0.9},
        "init": {},
        "init_map": {"init": initial},
        "feature_matching": {"preset": "unet", "strategy": "central", "adversarial": 0.1},
        "crop_ratio": {"crop_area": (0.5, 1.0)},
        "target": {"preset": "features"},
        "encoder": {"preset": "features"},
        "layers": {"preset": "features"},
        "pretext": {"preset": "features"},
        "exemplar_classes": {"preset": "features", "pretext": "exemplar"},
    }  # settings that need another one
    of_alexnet = {"norm": "lrn", "groups": 2, "dropout": 0.0, "region": "image"}
    of_the_driver = {"source", "store", "summary", "tracking_uri", "experiment", "max_failures",
                     "stall_timeout_s", "log_to", "probe_every",
                     "time_limit_s",
                     "cache_folder", "cache_gb"}  # fmt: skip
    names = {field.name for field in fields(PretrainConfig)}
    assert of_inpaint.keys() | of_alexnet.keys() | of_others.keys() == names - of_the_driver
    for name, needed in of_others.items():
        value = {
            "momentum": 0.5, "milestones": (7,), "crop_ratio": (1.0, 1.0),
            "target": "normalized", "layers": "dense", "encoder": "resnet18",
            "feature_matching": 2.0, "export": "raw", "init": initial, "init_map": ("a=b",),
            "scale_learning_rate": "sqrt", "pretext": "transformation", "exemplar_classes": 20,
        }[name]  # fmt: skip
        first, second = made(**needed), made(**needed, **{name: value})
        assert first[1] != second[1], name
        assert first[0] != second[0] or name == "init_map", name  # which names a file's tensors
    for preset, changes in (("inpaint", of_inpaint), ("alexnet", of_alexnet)):
        task, key = made(preset=preset)
        for name, value in changes.items():
            changed, other = made(**{"preset": preset, name: value})
            assert changed != task, name
            assert (other == key) == (name in NOT_IN_KEY), name


def test_the_seed_draws_the_weights(dataset_uri: str) -> None:
    config = PretrainConfig(batch_size=8, bottleneck=8)
    recipe = resolve_recipe(config)
    plan = run_module._plan(config, recipe, dataset_uri, read_manifest(dataset_uri))
    task = run_module._task(config, recipe, plan, "stage")

    def weights_of(seed: int) -> list[torch.Tensor]:
        seeded = replace(task, plan=replace(plan, seed=seed))
        networks, _ = worker.build(seeded, torch.device("cpu"))
        return [next(network.parameters()) for network in networks if network is not None]

    first, other = weights_of(3), weights_of(4)
    assert len(first) == 2
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_runs_that_differ_in_nothing_but_the_seed_are_of_one_arm(dataset_uri: str) -> None:
    manifest = read_manifest(dataset_uri)

    def arm(**changes: Any) -> str:
        config = PretrainConfig(**changes)
        scaling = scaling_config(config, Resources(cpus=4, gpus=0))
        recipe = resolve_recipe(config, manifest.mean_rgb)
        spec = run_module._run_spec(config, recipe, manifest, dataset_uri, "key", "uri", scaling)
        return spec.tags["arm"]

    assert arm(seed=1) == arm(seed=2)
    assert len({arm(), arm(steps=3), arm(strategy="random_block")}) == 3


def test_keys_are_those_of_the_first_release() -> None:
    """Computed by the code of 2026-11-28 before optimizers could be chosen."""
    manifest: Any = SimpleNamespace(mean_rgb=(120.5, 111.25, 99.0), fingerprint="0" * 64)
    block: dict[str, Any] = {"strategy": "random_block", "steps": 300, "batch_size": 32, "seed": 3}
    pixels: dict[str, Any] = {"adversarial": 0.0, "reconstruction": "l1", "learning_rate": 1e-3}
    for changes, key in (
        ({}, "8f8d20f60c734cc8a5afd139d8726ea9bcf5666e3da01ab95aacfb874ad9a95e"),
        ({"preset": "alexnet"}, "a6efea694d9244fe6bdce1785fa585db7be77914c8f7f4119ae9e2b13e0c57ea"),
        (block, "5a5854908d2b16f82c1a8795b57dea0fd2582d530972d3510ade4c155ac448d5"),
        (pixels, "48aebf57bdfe1382ebb8827207395de6078ff558b84fd39c8fbbcc1fd8121728"),
    ):
        assert pretrain_key(PretrainConfig(**changes), manifest) == key


def test_the_key_names_what_is_computed_not_how(dataset_uri: str, tmp_path: Path) -> None:
    manifest = read_manifest(dataset_uri)
    config = make_config(tmp_path)
    key = pretrain_key(config, manifest)
    how = {"num_workers": 4, "log_every": 1, "store": "elsewhere", "checkpoint_every": 3}
    assert pretrain_key(replace(config, **how), manifest) == key
    for what in ({"seed": 1}, {"strategy": "random_block"}, {"steps": 25}, {"adversarial": 0.0}):
        assert pretrain_key(replace(config, **what), manifest) != key
    alone = replace(config, adversarial=1.0)
    same = replace(alone, discriminator_learning_rate=2e-4)
    assert pretrain_key(alone, manifest) == pretrain_key(same, manifest)
    other = replace(manifest, seed=manifest.seed + 1)
    assert pretrain_key(config, other) != key


def test_features_has_the_recipe_of_masked_prediction() -> None:
    recipe = resolve_recipe(PretrainConfig(preset="features", steps=1600))
    assert recipe.strategy == "grid_60" and recipe.network.target == "hog"
    assert recipe.learning_rates.generator == 1e-3
    assert recipe.optimization == Optimization(
        optimizer="muon", betas=(0.9, 0.95), momentum=0.95, weight_decay=0.05, schedule="cosine",
        warmup_steps=80,
    )  # fmt: skip
    for changes, momentum in (({"preset": "alexnet", "optimizer": "muon"}, 0.95),
                              ({"preset": "features", "optimizer": "adamw"}, 0.9)):  # fmt: skip
        assert resolve_recipe(PretrainConfig(**changes)).optimization.momentum == momentum
    assert recipe.crop is not None and recipe.crop.area == (0.35, 1.0) and recipe.shorter == 128
    fixed = resolve_recipe(PretrainConfig(preset="features", shorter=144))
    assert fixed.crop is None and fixed.shorter == 144


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "features", "adversarial": 0.1}, "adversarial is 0.1; it must be 0"),
        ({"preset": "features", "fill": (0.0, 0.0, 0.0)}, "masked layers see no hole"),
        ({"preset": "features", "shorter": 144, "crop_area": (0.5, 1.0)}, "give one"),
        ({"crop_ratio": (1.0, 2.0)}, "it needs --crop-area"),
        ({"crop_area": (0.5, 1.5)}, "crop_area is"),
        ({"colour_jitter": (0.4, 0.4, 0.4, 0.6)}, "hue is 0.6; it must be 0 to 0.5"),
        ({"grey": 1.1}, "grey is 1.1; it must be 0 to 1"),
        ({"crop_area": (0.5, 1.0), "crop_ratio": (2.0, 1.0)}, "crop_ratio is"),
    ],
)
def test_settings_of_features_and_crops_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig(**changes)


@pytest.mark.parametrize("preset", ["inpaint", "alexnet"])
def test_a_default_that_is_given_is_no_other_training(preset: str, dataset_uri: str) -> None:
    manifest = read_manifest(dataset_uri)
    joint = preset == "inpaint"
    given: dict[str, Any] = {
        "strategy": "central" if joint else "random_region", "region": "hole",
        "adversarial": 0.001 if joint else 0.0, "overlap": 4 if joint else 0,
        "dropout": 0.5, "bottleneck": 4000, "shorter": 144 if joint else 0,
        "learning_rate": 2e-3 if joint else 1e-4, "fill": manifest.mean_rgb,
    }  # fmt: skip
    if joint:
        given["discriminator_learning_rate"] = 2e-4
    key = pretrain_key(PretrainConfig(preset=preset), manifest)
    for name, value in given.items():
        config = PretrainConfig(preset=preset, **{name: value})
        assert pretrain_key(config, manifest) == key, name
