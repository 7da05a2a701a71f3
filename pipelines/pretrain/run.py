"""The pretraining stage: train what is missing, log it, commit the result."""

import importlib.metadata
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from rich.console import Console
from rich.table import Table

from ce_model import training
from ce_model.networks import ContextEncoder
from pipelines import cluster, dataset, progress, storage, stream, tracking, weights
from pipelines.cluster import Resources
from pipelines.errors import UserError
from pipelines.pretrain import alarm, checkpoint, monitor, panel, worker
from pipelines.pretrain import config as settings
from pipelines.pretrain.config import PretrainConfig, pretrain_key
from pipelines.progress import Failure, plain_console
from pipelines.stream import StreamPlan

COMMIT = "commit.json"
POLL_S = 0.5
MEMORY_POLL_S = 3.0
COLLECTIVE_TIMEOUT_S = 300
DELIVERY_WAIT_S = 120.0  # for an MLflow server that is away when training has ended
SERVED_WITH = ("torch", "numpy", "safetensors", "fsspec", "pyarrow", "mlflow")


def stage_uri(store: str, key: str) -> str:
    """Where a training leaves what it makes."""
    return storage.join(storage.absolute(store), "pretrain", key[:16])


def is_committed(stage: str) -> bool:
    """Whether a training has ended and MLflow has all of it."""
    return storage.exists(storage.join(stage, COMMIT))


def run(config: PretrainConfig, dataset_uri: str) -> dict[str, Any]:
    """Pretrain on a prepared dataset; returns the summary of what was measured.

    The same config and dataset give the same stage: a finished one is returned as it is, an
    interrupted one goes on at its last checkpoint in the same MLflow run.
    """
    console = plain_console()
    manifest = dataset.read_manifest(dataset_uri)
    plan = _plan(config, dataset_uri, manifest)
    key = pretrain_key(config, manifest)
    stage = stage_uri(config.store, key)
    uri = tracking.tracking_uri(config.tracking_uri, config.store)
    if is_committed(stage):
        summary: dict[str, Any] = storage.read_json(storage.join(stage, COMMIT))
        console.print(f"already trained: {stage}")
    else:
        what = _described(config.preset, config.holes, config.steps, config.batch_size, plan.rows)
        console.print(f"training {what}", soft_wrap=True)
        with cluster.connected() as resources:
            task = _task(config, plan, stage)
            scaling = _scaling(config, resources)
            spec = _run_spec(config, manifest, dataset_uri, key, uri, scaling)
            summary = _train(config, task, scaling, spec, console)
    if config.summary:
        storage.publish_json(config.summary, summary)
    _table(summary, console)
    return summary


def _plan(config: PretrainConfig, uri: str, manifest: dataset.Manifest) -> StreamPlan:
    plan = StreamPlan(
        uri=storage.absolute(uri),
        manifest=manifest,
        strategy=config.holes,
        side=settings.side(config),
        shorter=settings.shorter(config),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        steps=config.steps,
        seed=config.seed,
        window_rows=config.window_rows,
    )
    manifest.mask_spec(plan.strategy, plan.side)
    if not manifest.rows("val"):
        raise UserError(
            f"'{uri}' has no validation pictures, so nothing could be measured: prepare it again "
            "with a val/ folder or --validation-share above 0"
        )
    return plan


def _task(config: PretrainConfig, plan: StreamPlan, stage: str) -> worker.Task:
    objective = settings.objective(config, plan.manifest.mean_rgb)
    return worker.Task(
        plan=plan,
        stage_uri=stage,
        network=settings.network(config),
        objective=objective,
        learning_rates=settings.learning_rates(config, objective.adversarial),
        precision=config.precision,
        compile=config.compile,
        threads=config.threads_per_worker,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        log_every=config.log_every,
        validate_every=config.validate_every or config.checkpoint_every,
        validation_images=config.validation_images,
    )


def _scaling(config: PretrainConfig, resources: Resources) -> ScalingConfig:
    """One GPU per worker where there are GPUs; on CPUs one core stays free for the data tasks."""
    workers = config.num_workers
    if resources.gpus:
        if workers > resources.gpus:
            raise UserError(
                f"num_workers is {workers}; the cluster has {resources.gpus} GPUs, and each worker "
                f"takes one: use --num-workers {resources.gpus} or fewer"
            )
        return ScalingConfig(num_workers=workers, use_gpu=True)
    if workers > resources.cpus:
        raise UserError(
            f"num_workers is {workers}; the cluster has {resources.cpus} CPUs and no GPU: use "
            f"--num-workers {resources.cpus} or fewer"
        )
    share = min(1.0, (resources.cpus - 1) / workers)
    # One byte of memory, since Ray refuses to place what takes nothing.
    return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": share, "memory": 1})


def _run_spec(
    config: PretrainConfig,
    manifest: dataset.Manifest,
    dataset_uri: str,
    key: str,
    uri: str,
    scaling: ScalingConfig,
) -> tracking.RunSpec:
    objective = settings.objective(config, manifest.mean_rgb)
    params = asdict(config) | {f"objective.{k}": v for k, v in asdict(objective).items()}
    params |= {
        "resolved.strategy": config.holes,
        "resolved.shorter": settings.shorter(config),
        "resolved.learning_rates": settings.learning_rates(config, objective.adversarial),
        "resolved.use_gpu": scaling.use_gpu,
    }
    return tracking.RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=key,
        name=f"{config.preset}-{config.holes}-{key[:8]}",
        params=params,
        tags={
            "stage": "pretrain",
            "preset": config.preset,
            "strategy": config.holes,
            "dataset_fingerprint": manifest.fingerprint,
            # Runs of one arm differ in nothing but the seed; promotion takes their spread.
            "arm": pretrain_key(replace(config, seed=0), manifest),
        },
        dataset_uri=dataset_uri,
        dataset_fingerprint=manifest.fingerprint,
    )


def _train(
    config: PretrainConfig,
    task: worker.Task,
    scaling: ScalingConfig,
    spec: tracking.RunSpec,
    console: Console,
) -> dict[str, Any]:
    recorder = tracking.Recorder(spec)
    watch = _Watch(config, task, recorder, console)
    status: str | None = "FAILED"
    problem = None
    try:
        found = checkpoint.latest(task.stage_uri)
        if unusable := checkpoint.passed_over(task.stage_uri, found):
            console.print(
                f"warning: checkpoint {', '.join(unusable)} is unfinished or damaged and is passed "
                f"over; going on from step {found.step if found else 0}"
            )
        if found is None or found.step < task.plan.steps:
            with watch.running() as mailbox:
                _fit_or_tell(config, task, scaling, mailbox)
            found = checkpoint.latest(task.stage_uri)
        if watch.diverged is not None:
            raise UserError(
                f"training diverged: up to step {watch.diverged['step']}, "
                f"{watch.diverged['updates']} updates in a row were not finite, and none of them "
                "was applied; lower --learning-rate or try --precision fp32"
            )
        if found is None or found.step < task.plan.steps:
            raise RuntimeError(f"training ended at {found and found.step} of {task.plan.steps}")
        watch.replay(found.state["history"])
        collapsed = alarm.collapse(found.state["history"])
        if collapsed is not None:
            recorder.tag("alarm.collapse", collapsed)  # promotion refuses such a run
            console.print(f"warning: the run has collapsed: {collapsed}")
        console.print("writing the model")
        summary = _export(config, task, spec, found, watch)
        summary["tracking_run_id"], problem = recorder.flush(DELIVERY_WAIT_S)
        if problem is None:
            problem = _log_result(spec.uri, summary, task.plan.side)
        status = "FINISHED" if problem is None else None
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        outcome = recorder.finish(status, wait_s=DELIVERY_WAIT_S if problem is None else 0.0)
    problem = problem or outcome.problem
    if problem is None:
        storage.publish_json(storage.join(task.stage_uri, COMMIT), summary)
    else:
        console.print(
            f"warning: MLflow does not have everything yet ({problem}). Nothing is lost: "
            "give the same command again when the server is back, and it delivers the rest.",
        )
    return summary


def _log_result(uri: str, summary: dict[str, Any], side: int) -> str | None:
    """Log the model and the summary; returns why that has to wait, as a recorder does."""
    run_id = summary["tracking_run_id"]
    try:
        summary["model_uri"] = _log_model(uri, run_id, summary["model"], side)
        text = json.dumps(summary, indent=2).encode()
        tracking.log_bytes(tracking.client(uri), run_id, "summary.json", text)
    except Exception as error:
        if not tracking.may_pass(error):
            raise
        return tracking.described(uri, error)
    return None


def _fit_or_tell(
    config: PretrainConfig, task: worker.Task, scaling: ScalingConfig, mailbox: Any
) -> None:
    """Train; a failure whose reason lies outside the program becomes one message."""
    try:
        _fit(config, task, scaling, mailbox)
    except ray.train.TrainingFailedError:
        failure: Failure | None = ray.get(mailbox.failure.remote())
        if failure is None:
            raise
    else:
        failure = ray.get(mailbox.failure.remote())
        if failure is None or not failure.final:
            return
    raise UserError(
        f"training stopped: {failure.reason}. Once that is mended, the same command goes on from "
        "the last checkpoint"
    )


def _fit(config: PretrainConfig, task: worker.Task, scaling: ScalingConfig, mailbox: Any) -> None:
    filesystem, path = storage.arrow_filesystem(storage.join(task.stage_uri, "ray"))
    trainer = _Trainer(
        worker.train,
        train_loop_config={"task": task, "mailbox": mailbox},
        scaling_config=scaling,
        run_config=RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        datasets={"train": lambda: worker.training_stream(task)},
        dataset_config=DataConfig(execution_options=stream.execution_options()),
    )
    trainer.fit()


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ends when it should."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to Python: Ray's handler ends the process with code 1 and no word."""

    def _create_default_callbacks(self) -> list[Any]:
        """Do not wait 12 s at the end for a dashboard that is not there.

        Ray's cleaner of placement groups asks the dashboard whether the controller still lives. A
        cluster without one is ours alone and ends with this process, so nothing is to be cleaned.
        """
        callbacks: list[Any] = super()._create_default_callbacks()
        if cluster.has_dashboard():
            return callbacks
        return [x for x in callbacks if not isinstance(x, PlacementGroupCleanerCallback)]


class _Watch:
    """Takes rank 0's records to the screen, to the recorder and to the panel file."""

    def __init__(
        self,
        config: PretrainConfig,
        task: worker.Task,
        recorder: tracking.Recorder,
        console: Console,
    ) -> None:
        self._config, self._task, self._recorder = config, task, recorder
        self._progress = monitor.TrainingProgress(console, task.plan.steps)
        self._stop = threading.Event()
        self.peak_memory_bytes = 0
        self.diverged: dict[str, Any] | None = None

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Follow a mailbox from a thread while the block runs."""
        mailbox = progress.mailbox()
        thread = threading.Thread(target=self._follow, args=(mailbox,), daemon=True)
        thread.start()
        try:
            yield mailbox
        finally:
            self._stop.set()
            thread.join()
            self._take(ray.get(mailbox.drain.remote()))
            self._progress.close()
            ray.kill(mailbox)

    def replay(self, history: list[dict[str, Any]]) -> None:
        """Hand a whole history to the recorder, which leaves out what the server has."""
        for record in history:
            self._recorder.metrics(record["values"], record["step"], record["time"])

    def _follow(self, mailbox: Any) -> None:
        memory_at = 0.0
        while not self._stop.wait(POLL_S):
            self._take(ray.get(mailbox.drain.remote()))
            if time.monotonic() - memory_at > MEMORY_POLL_S:
                memory_at = time.monotonic()
                self.peak_memory_bytes = max(self.peak_memory_bytes, monitor.memory_of_tree())

    def _take(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            step = message["step"]
            if message["kind"] == "curves":
                self._recorder.metrics(message["values"], step, message["time"])
                if "images_per_second" in message["values"]:
                    self._progress.record(step, message["values"])
            elif message["kind"] == "panel":
                self._publish_panel(step, message["pictures"])
            elif message["kind"] == "resumed":
                self._progress.note(f"resumed at step {step}")
                self.replay(message["history"])
            elif message["kind"] == "diverged":
                self.diverged = message

    def _publish_panel(self, step: int, pictures: dict[str, Any]) -> None:
        title = f"{self._config.preset}, {self._config.holes} holes, step {step}: validation"
        png = panel.draw(pictures, title)
        try:
            storage.publish(storage.join(self._task.stage_uri, "panel.png"), png)
        except (OSError, UserError) as error:  # the storage is away: the curves go on
            self._progress.note(f"warning: the panel of step {step} is not in the store: {error}")
        self._recorder.artifact(f"panels/step-{step:08d}.png", png)
        self._recorder.artifact("panel.png", png)


def _export(
    config: PretrainConfig,
    task: worker.Task,
    spec: tracking.RunSpec,
    found: checkpoint.Checkpoint,
    watch: _Watch,
) -> dict[str, Any]:
    """Write the model folder and put together what was measured."""
    networks, optimizers = worker.build(task, device=torch.device("cpu"))
    training.load_state_tensors(networks, optimizers, found.tensors())
    model_uri = storage.join(task.stage_uri, "model")
    last = {
        name: value for record in found.state["history"] for name, value in record["values"].items()
    }
    validation = {
        name: last[f"validation/{name}"]
        for name in ("l1_hole", "l2_hole", "psnr_hole", "psnr_mean_fill", "psnr_untrained")
    }
    info = {
        "strategy": config.holes,
        "steps": config.steps,
        "seed": config.seed,
        "key": spec.key,
        "dataset_fingerprint": task.plan.manifest.fingerprint,
        "code": tracking.git_commit(),
        "shorter": task.plan.shorter,
        "validation": validation,
    }
    assert isinstance(networks.generator, ContextEncoder)
    digest = weights.save_model(model_uri, networks.generator, task.network, task.objective, info)
    totals = found.state["totals"]
    trained_s = max(totals["train_s"], 1e-9)
    return {
        "key": spec.key,
        "preset": config.preset,
        "strategy": config.holes,
        "adversarial": task.objective.adversarial,
        "dataset": task.plan.uri,
        "dataset_fingerprint": task.plan.manifest.fingerprint,
        "training_images": task.plan.rows,
        "steps": found.step,
        "batch_size": config.batch_size,
        "num_workers": config.num_workers,
        "images_per_second": totals["steps"] * config.batch_size / trained_s,
        "data_wait_share": totals["wait_s"] / trained_s,
        "train_seconds": totals["train_s"],
        "restarts": totals["restarts"],
        "updates_skipped": totals["skipped"],
        "peak_memory_bytes": max(watch.peak_memory_bytes, int(last["memory/rank_0_peak_bytes"])),
        "losses": {name: last[name] for name in last if name.startswith("loss/")},
        "validation": validation,
        "tracking_uri": spec.uri,
        "checkpoint": found.uri,
        "panel": storage.join(task.stage_uri, "panel.png"),
        "model": model_uri,
        "weights_sha256": digest,
    }


def _log_model(uri: str, run_id: str, model: str, side: int) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        weights.copy_model(model, str(folder))
        requirements = [f"{n}=={importlib.metadata.version(n).split('+')[0]}" for n in SERVED_WITH]
        return tracking.log_model(uri, run_id, folder, side, requirements)


def _described(preset: str, holes: str, steps: int, batch_size: int, pictures: int) -> str:
    return f"{preset}, {holes} holes, {steps:,} steps of {batch_size} on {pictures:,} pictures"


def _table(summary: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False, title="pretraining", title_justify="left")
    measured = summary["validation"]
    memory = summary["peak_memory_bytes"] / 1e9
    losses = summary["losses"]
    rows = {
        "trained": _described(
            summary["preset"],
            summary["strategy"],
            summary["steps"],
            summary["batch_size"],
            summary["training_images"],
        ),
        "losses": "  ".join(
            f"{k.removeprefix('loss/')} {v:.4f}" for k, v in sorted(losses.items())
        ),
        "PSNR of the hole": f"{measured['psnr_hole']:.2f} dB   (mean colour "
        f"{measured['psnr_mean_fill']:.2f} dB, untrained {measured['psnr_untrained']:.2f} dB)",
        "L1, L2 of the hole": f"{measured['l1_hole']:.2%}, {measured['l2_hole']:.2%}",
        "speed": f"{summary['images_per_second']:.0f} images/s, waiting for data "
        f"{summary['data_wait_share']:.1%} of the time, peak memory {memory:.1f} GB",
    }
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for name, place in (
        ("panel", summary["panel"]),
        ("model", summary["model"]),
        ("MLflow", f"run {summary['tracking_run_id']} of {summary['tracking_uri']}"),
    ):  # below the table, where a long path stays whole
        console.print(f"{name:6}  {place}", soft_wrap=True)
