"""The pretraining stage: train what is missing, log it, commit the result."""

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ray.train import ScalingConfig
from rich.console import Console

from ce_model.masks import Strategy
from ce_model.networks import INPAINTING, NetworkConfig
from pipelines import storage
from pipelines.data.manifest import Manifest, read_manifest
from pipelines.data.source_names import source_name
from pipelines.data.stream_plan import StreamPlan
from pipelines.errors import UserError
from pipelines.models import checkpoint
from pipelines.pretrain.collapse import collapse
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.continuation import find_finished, start_from
from pipelines.pretrain.driver import DriverWatch
from pipelines.pretrain.fit import fit_or_raise, scaling_config
from pipelines.pretrain.initial import FILE, write_initial, write_kmeans
from pipelines.pretrain.key import find_initial_of, pretrain_key, stage_uri, stored_key
from pipelines.pretrain.parameters import effective, given
from pipelines.pretrain.recipe import Recipe, resolve_recipe
from pipelines.pretrain.summary import (
    closing_table,
    describe_budget,
    describe_divergence,
    export_model,
    log_trained_model,
)
from pipelines.pretrain.task import Task
from pipelines.runtime import cluster, environment
from pipelines.runtime.cluster import Resources
from pipelines.runtime.progress import plain_console
from pipelines.runtime.reservation import reserve
from pipelines.runtime.shared_folder import require_shared
from pipelines.storage import commits, lease
from pipelines.tracking import runs
from pipelines.tracking.client import SQLITE, client, describe_error, may_pass, tracking_uri
from pipelines.tracking.recorder import Recorder
from pipelines.tracking.registry import GIVEN_TAG

CACHE_GB = 100.0
LEASE = "lease"
LEASE_S = 60.0  # for a job that vanished with its machine; another one of this machine is seen


BEGIN_WAIT_S = 15.0  # a refusal is better before the training than after it


DELIVERY_WAIT_S = 120.0  # for an MLflow server that is away when training has ended


def is_committed(stage: str) -> bool:
    """Whether a training has ended and MLflow has all of it."""
    return commits.is_committed(stage)


def read_commit(stage: str) -> dict[str, Any]:
    """The summary of a finished training, with the places of today if its store was moved."""
    summary: dict[str, Any] = storage.read_json(commits.commit_uri(stage))
    inside = storage.join("pretrain", stage.rpartition("/")[2])
    old = str(summary["model"]).removesuffix(f"/{inside}/model")
    new = stage.removesuffix(f"/{inside}")
    for scheme in ("", SQLITE):
        summary = storage.relocate(summary, scheme + old, scheme + new)
    return summary


def pretrain_model(config: PretrainConfig, dataset_uri: str) -> dict[str, Any]:
    """Pretrain on a prepared dataset; returns the summary of what was measured.

    The same config and dataset give the same stage: a finished one is returned as it is, an
    interrupted one resumes from its last checkpoint in the same MLflow run. `delivered` in it says
    whether MLflow has all of it.
    """
    console = plain_console()
    manifest = read_manifest(dataset_uri)
    recipe = resolve_recipe(config, manifest.mean_rgb, manifest.rows("train"))
    plan = _plan(config, recipe, dataset_uri, manifest)
    uri = tracking_uri(config.tracking_uri, config.store)
    key = stored_key(config, manifest)
    stage = stage_uri(config.store, key)
    what = describe_budget(recipe.about, config.steps, config.batch_size, plan.rows)

    def tell(owner: str) -> None:
        text = f"waiting: {owner} is training {what}, which this command needs, too"
        console.print(text, soft_wrap=True)

    environment.require_train_v2()
    with storage.naming_full(config.store), ExitStack() as held:
        if not is_committed(stage):
            console.print(f"training {what}", soft_wrap=True)
            if left := manifest.rows("train") - plan.rows:
                console.print(
                    f"the first {plan.rows:,} training images are the classes of exemplar; "
                    f"{left:,} others are not used (--exemplar-classes)",
                    soft_wrap=True,
                )
            resources = held.enter_context(cluster.connect())
            scaling = scaling_config(config, resources)  # may refuse: before anything is written
            held.enter_context(lease.alone(storage.join(stage, LEASE), lease_s=LEASE_S, tell=tell))
        if is_committed(stage):
            summary = read_commit(stage)
            console.print(f"already trained: {stage}", soft_wrap=True)
        else:
            if config.cache_folder is not None:
                console.print(_describe_cache(config.cache_folder, plan), soft_wrap=True)
            if config.scale_learning_rate != "none":
                console.print(
                    f"learning rates for batches of {config.batch_size}, scaled "
                    f"({config.scale_learning_rate}): generator "
                    f"{recipe.learning_rates.generator:.3g}, discriminator "
                    f"{recipe.learning_rates.discriminator:.3g}"
                )
            require_shared("store", config.store)
            task = _task(config, recipe, plan, stage)
            _continue_finished(config, recipe, manifest, stage, console)
            _begin_from(config, recipe, plan, stage, console)
            spec = _run_spec(config, recipe, manifest, dataset_uri, key, uri, scaling)
            summary = _train(config, task, resources, spec, console)
    summary = {**summary, "delivered": is_committed(stage)}
    if config.summary:
        storage.publish_json(config.summary, summary)
    closing_table(summary, console)
    return summary


def _continue_finished(
    config: PretrainConfig, recipe: Recipe, manifest: Manifest, stage: str, console: Console
) -> None:
    """Begin with the state of a finished shorter training, or say why it cannot be used."""
    if storage.children(storage.join(stage, "checkpoints")):
        return
    home = storage.join(storage.absolute(config.store), "pretrain")
    finished = find_finished(config, recipe, manifest, home)
    if finished is None:
        return
    if not finished.is_start:
        console.print(
            f"{finished.stage} holds the same training with {finished.steps} steps; with schedule "
            f"{recipe.optimization.schedule} its learning rates differ from those of "
            f"{config.steps} steps, so this one starts at step 0",
            soft_wrap=True,
        )
        return
    start_from(finished, stage)
    console.print(
        f"continues at step {finished.steps} of the finished training {finished.stage}",
        soft_wrap=True,
    )


def _begin_from(
    config: PretrainConfig, recipe: Recipe, plan: StreamPlan, stage: str, console: Console
) -> None:
    """Put the weights to start from into the stage, and say what of them is used."""
    if storage.exists(storage.join(stage, FILE)):
        return
    initial = find_initial_of(config)
    if initial is not None:
        console.print(write_initial(initial, recipe.network, stage), soft_wrap=True)
    elif recipe.init == "kmeans":
        console.print(write_kmeans(plan, recipe.network, stage), soft_wrap=True)


def _plan(config: PretrainConfig, recipe: Recipe, uri: str, manifest: Manifest) -> StreamPlan:
    plan = StreamPlan(
        uri=storage.absolute(uri),
        manifest=manifest,
        strategy=_carried(recipe, manifest),
        side=recipe.side,
        shorter=recipe.shorter,
        batch_size=config.batch_size,
        num_workers=config.workers.most,
        steps=config.steps,
        seed=config.seed,
        window_rows=config.window_rows,
        crop=recipe.crop,
        flip=config.flip,
        colour=recipe.colour,
        cache=_cache(config, uri, manifest),
        most_rows=recipe.network.exemplar_classes or None,
    )
    if plan.most_rows is not None and plan.rows < plan.most_rows:
        raise UserError(
            f"exemplar_classes is {plan.most_rows}, and '{uri}' has {plan.rows} training images: "
            f"give {plan.rows} or less, or leave it out"
        )
    manifest.mask_spec(plan.strategy, plan.side)
    if not manifest.rows("val"):
        raise UserError(
            f"'{uri}' has no validation images, so nothing could be measured: prepare it again "
            "with a val/ folder or --validation-share above 0"
        )
    return plan


def _carried(recipe: Recipe, manifest: Manifest) -> Strategy:
    """The holes that the stream brings; a sibling pretext uses none, so any will do."""
    there = [spec.strategy for spec in manifest.masks if spec.side == recipe.side]
    if recipe.network.pretext == INPAINTING or recipe.strategy in there or not there:
        return recipe.strategy
    return there[0]


def _cache(config: PretrainConfig, uri: str, manifest: Manifest) -> storage.CacheSettings | None:
    if config.cache_folder is None or storage.is_local(uri):
        return None
    gigabytes = CACHE_GB if config.cache_gb is None else config.cache_gb
    return storage.CacheSettings(
        folder=config.cache_folder,
        limit_bytes=int(gigabytes * 1e9),
        group=manifest.fingerprint[:16],
    )


def _describe_cache(folder: str, plan: StreamPlan) -> str:
    if plan.cache is None:
        return (
            f"--cache-folder {folder} is not used: the dataset is not in a bucket but in {plan.uri}"
        )
    files = plan.manifest.splits["train"]
    held = sum(file.bytes + sum(sidecar.bytes for sidecar in file.sidecars) for file in files)
    limit = plan.cache.limit_bytes
    rest = "" if held <= limit else "; what has no room is read from the store in every epoch"
    return (
        f"shards are kept in {folder} of each node: at most {limit / 1e9:.2f} GB, the training "
        f"images have {held / 1e9:.2f} GB{rest}"
    )


def _task(config: PretrainConfig, recipe: Recipe, plan: StreamPlan, stage: str) -> Task:
    return Task(
        plan=plan,
        workers=config.workers,
        stage_uri=stage,
        recipe=recipe,
        precision=config.precision,
        compile=config.compile,
        threads=environment.threads_per_worker(config.threads_per_worker),
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        keep_best=config.keep_best,
        has_initial=recipe.init != "random",
        log_every=config.log_every,
        validate_every=config.validate_every or config.checkpoint_every,
        validation_images=config.validation_images,
        profile_steps=config.profile_steps,
        probe_images=config.probe_images,
    )


def _run_spec(
    config: PretrainConfig,
    recipe: Recipe,
    manifest: Manifest,
    dataset_uri: str,
    key: str,
    uri: str,
    scaling: ScalingConfig,
) -> runs.RunSpec:
    data = source_name(manifest.source)
    return runs.RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=key,
        name=f"{recipe.about}, {data}, {key[:8]}",
        params=effective(config, recipe, source=manifest.source, use_gpu=scaling.use_gpu),
        tags={
            "stage": "pretrain",
            "preset": config.preset,
            **recipe.learned_from,
            GIVEN_TAG: json.dumps(given(config)),
            "dataset_fingerprint": manifest.fingerprint,
            # Runs of one arm differ in nothing but the seed; promotion takes their spread.
            "arm": pretrain_key(replace(config, seed=0), manifest),
        },
        dataset_uri=dataset_uri,
        dataset_fingerprint=manifest.fingerprint,
    )


def _train(
    config: PretrainConfig,
    task: Task,
    resources: Resources,
    spec: runs.RunSpec,
    console: Console,
) -> dict[str, Any]:
    recorder = Recorder(spec, tell=lambda text: console.print(text, soft_wrap=True))
    watch = DriverWatch(config, task, recorder, console)
    status: str | None = "FAILED"
    problem = None
    try:
        if late := recorder.begin(BEGIN_WAIT_S):
            console.print(
                f"warning: MLflow does not answer yet ({late}); training continues, and what it "
                "measures is delivered later",
                soft_wrap=True,
            )
        found = checkpoint.latest(task.stage_uri)
        if unusable := checkpoint.passed_over(task.stage_uri, found):
            console.print(
                f"warning: checkpoint {', '.join(unusable)} is unfinished or damaged and is passed "
                f"over; going on from step {found.step if found else 0}"
            )
        if found is None or found.step < task.plan.steps:
            with (
                reserve(
                    # What a group may grow to is taken when it is free.
                    cpus=1 if resources.gpus else config.workers.fewest + 1,
                    gpus=config.workers.fewest if resources.gpus else 0,
                    tell=watch.note,
                ) as (cpus, mailbox),
                watch.stop.on_signals(),
                watch.running(mailbox),
            ):
                scaling = scaling_config(config, resources, cpus)
                fit_or_raise(config, task, scaling, mailbox)
            found = checkpoint.latest(task.stage_uri)
        reached = found.step if found else 0
        if watch.stop.reason is not None and reached < task.plan.steps:
            console.print(f"stopped by {watch.stop.reason} with a checkpoint of step {reached}")
            raise KeyboardInterrupt
        if watch.diverged is not None:
            raise UserError(describe_divergence(watch.diverged, watch.faults))
        if found is None or found.step < task.plan.steps:
            raise RuntimeError(f"training ended at {found and found.step} of {task.plan.steps}")
        watch.replay(found.state["history"])
        collapsed = collapse(found.state["history"])
        if collapsed is not None:
            recorder.tag("alarm.collapse", collapsed)  # promotion refuses such a run
            console.print(f"warning: the run has collapsed: {collapsed}")
        console.print("writing the model")
        summary = export_model(config, task, spec, found, watch)
        summary["tracking_run_id"], problem = recorder.flush(DELIVERY_WAIT_S)
        if problem is None:
            problem = _log_result(spec.uri, summary, task.recipe.network)
        status = "FINISHED" if problem is None else None
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        outcome = recorder.finish(status, wait_s=DELIVERY_WAIT_S if problem is None else 0.0)
    problem = problem or outcome.problem
    if problem is None:
        storage.publish_json(commits.commit_uri(task.stage_uri), summary)
    else:
        console.print(
            f"warning: MLflow does not have everything yet ({problem}). Nothing is lost: "
            "rerun the same command when the server is back to deliver the rest.",
        )
    return summary


def _log_result(uri: str, summary: dict[str, Any], network: NetworkConfig) -> str | None:
    """Log the model and the summary; returns why that has to wait, as a recorder does."""
    run_id = summary["tracking_run_id"]
    try:
        summary["model_uri"] = log_trained_model(uri, run_id, summary, network)
        text = json.dumps(summary, indent=2).encode()
        runs.log_bytes(client(uri), run_id, "summary.json", text)
    except Exception as error:
        if not may_pass(error):
            raise
        return describe_error(uri, error)
    return None
