"""Where measurements run: Ray tasks, as many at once as the cluster has room for."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch
from rich.console import Console

from ce_model.network_config import network_in_key
from ce_model.networks import NetworkConfig
from ce_model.training import Precision
from pipelines import storage
from pipelines.data import manifest
from pipelines.errors import UserError
from pipelines.evaluation import baselines, encoders, measure, results
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data import proposals
from pipelines.evaluation.data.images import ImageSet
from pipelines.evaluation.plan import title
from pipelines.evaluation.settings import BaselineSettings, Layout
from pipelines.evaluation.task import Job
from pipelines.models import files, resolve
from pipelines.models.resolve import ModelRef
from pipelines.runtime.cluster import Resources
from pipelines.runtime.mailbox import create_mailbox
from pipelines.runtime.progress import ProgressDisplay

POLL_S = 1.0


def precision_of_workers(config: EvaluateConfig, resources: Resources) -> Precision:
    """What `auto` comes to where measurements run, which need not be where this runs.

    One worker resolves it for all. So a key names one computation, and a node
    that cannot compute so refuses.

    Raises:
        UserError: the worker cannot compute in the requested precision.
    """
    if config.precision == "fp32":
        return "fp32"
    ask_remotely = ray.remote(_precision_here).options(**_options(config, resources))
    precision, problem = ray.get(ask_remotely.remote(config.precision))
    if precision is None:
        raise UserError(problem)
    found: Precision = precision
    return found


def _precision_here(requested: Precision) -> tuple[Precision | None, str]:
    try:
        return ("bf16" if encoders.resolve_precision(requested) == torch.bfloat16 else "fp32"), ""
    except UserError as error:
        return None, str(error)


def _options(config: EvaluateConfig, resources: Resources) -> dict[str, Any]:
    """What a task that measures or trains takes."""
    if config.cpus_per_task > resources.cpus:
        raise UserError(
            f"cpus_per_task is {config.cpus_per_task}; the cluster has {resources.cpus} CPUs"
        )
    return {"num_cpus": config.cpus_per_task, "num_gpus": min(1, resources.gpus)}


class Executor:
    """Runs measurements as Ray tasks, as many at once as fit."""

    def __init__(self, config: EvaluateConfig, resources: Resources, console: Console) -> None:
        """Nothing runs yet."""
        self._config, self._console = config, console
        self._options = _options(config, resources)

    def perform(self, jobs: list[Job]) -> None:
        """Do what is not committed yet.

        Raises:
            UserError: some could not be done; the others are, and stay done.
        """
        missing = list(
            {job.uri: job for job in jobs if results.find_committed(job.uri) is None}.values()
        )
        done = len({job.uri for job in jobs}) - len(missing)
        if done:
            self._console.print(f"already measured: {done} of {done + len(missing)}")
        if not missing:
            return
        work_remotely = ray.remote(measure.perform).options(**self._options)
        mailbox = create_mailbox()
        names = {work_remotely.remote(job, self._config, mailbox): title(job) for job in missing}
        try:
            self._wait(names, "measuring", mailbox=mailbox)
        finally:
            ray.kill(mailbox)

    def search(self, images: list[ImageSet]) -> None:
        """Find the regions of images for detection, unless they are kept already."""
        search_remotely = ray.remote(_search).options(num_cpus=1)
        store = self._config.store
        missing = [p for p in images if not storage.exists(proposals.uri_of(store, p))]
        self._wait(
            {search_remotely.remote(store, part): part.keys[0] for part in missing},
            "selective search",
        )

    def train(self, wanted: dict[str, tuple[Any, ...]]) -> None:
        """Train baselines that are not there yet, by the folder of the model."""
        missing = {
            uri: arguments
            for uri, arguments in wanted.items()
            if not storage.exists(storage.join(uri, files.MODEL))
        }
        if not missing:
            return
        train_remotely = ray.remote(_train_baseline).options(**self._options)
        steps = create_mailbox()
        names = {
            train_remotely.remote(uri, *arguments, self._config.cpus_per_task, steps): uri
            for uri, arguments in missing.items()
        }
        total = self._config.baseline.steps * len(missing)
        try:
            self._wait(names, f"baselines ({len(missing)}), step", total, steps)
        finally:
            ray.kill(steps)

    def _wait(
        self, names: dict[Any, str], what: str, total: int | None = None, mailbox: Any = None
    ) -> None:
        """Wait for tasks. With a total, progress counts the steps that they post to a mailbox, else
        the tasks, beside what those at work have posted."""
        if not names:
            return
        problems, done, waiting = [], 0, list(names)
        doing: dict[str, str] = {}
        with ProgressDisplay(self._console, what, total or len(names)) as display:
            while waiting:
                ready, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_S)
                for reference in ready:
                    if message := ray.get(reference):
                        problems.append(f"{names[reference]}: {message}")
                posted = ray.get(mailbox.drain.remote()) if mailbox else []
                done += sum(post.get("steps", 0) for post in posted) if total else len(ready)
                doing |= {post["job"]: post["text"] for post in posted if "text" in post}
                if ready:
                    doing = {}  # whoever is still at work posts again within a second
                display.update(done, ", ".join(doing.values()))
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))


def _search(store: str, images: ImageSet) -> None:
    proposals.ensure(store, images)


def _train_baseline(
    uri: str,
    kind: baselines.Kind,
    network: NetworkConfig,
    data: str,
    settings: BaselineSettings,
    seed: int,
    precision: Precision,
    threads: int,
    steps: Any,
) -> str | None:
    torch.set_num_threads(threads)

    def done(number: int) -> None:
        steps.post.remote({"steps": number})

    try:
        dtype = encoders.resolve_precision(precision)
        baselines.train(kind, network, data, settings, seed, dtype, uri, done)
    except UserError as error:
        return str(error)
    return None


def with_baselines(
    given: dict[str, ModelRef | None],
    config: EvaluateConfig,
    layouts: dict[str, Layout],
    room: Executor,
) -> list[tuple[ModelRef, int]]:
    """Every subject with the seeds it is measured with; baselines are trained once per seed."""
    found = pair_with_baselines([s for s in given.values() if s is not None], config.seeds)
    wanted: dict[str, tuple[Any, ...]] = {}
    names: dict[str, tuple[str, baselines.Kind, int]] = {}
    for ref in (ref for ref, subject in given.items() if subject is None):
        name, rest = resolve.resolve_named(ref)
        kind: baselines.Kind = "autoencoder" if rest == "autoencoder" else "supervised"
        data = next((d for d, layout in layouts.items() if layout == "prepared"), None)
        if data is None:
            raise UserError(
                f"model is '{kind}', which is trained first, and no prepared dataset is among the "
                "data; make one with python jobs/prepare.py and give its URI with --data"
            )
        for seed in config.seeds:
            uri = _baseline_uri(kind, data, seed, config)
            wanted[uri] = (kind, config.network, data, config.baseline, seed, config.precision)
            names[uri] = (name, kind, seed)
    room.train(wanted)
    for uri, (name, kind, seed) in names.items():
        found.append((resolve.trained_ref(name, uri, kind=kind), seed))
    return found


def pair_with_baselines(
    subjects: Sequence[ModelRef], seeds: Sequence[int]
) -> list[tuple[ModelRef, int]]:
    """Subjects with the seeds they are measured with.

    A row of one model is measured with every seed. In a row of several (trainings of different
    seeds) each model takes one seed, in turn, so that they stay independent repetitions. A model
    that is given by two references counts once.
    """
    rows: dict[str, list[ModelRef]] = {}
    for subject in {(s.name, s.identity): s for s in subjects}.values():
        rows.setdefault(subject.name, []).append(subject)
    return [
        (subject, seed)
        for row in rows.values()
        for at, subject in enumerate(row)
        for seed in (seeds if len(row) == 1 else [seeds[at % len(seeds)]])
    ]


def _baseline_uri(kind: str, data: str, seed: int, config: EvaluateConfig) -> str:
    assert config.precision != "auto"  # a key names one computation
    key = storage.content_key(
        {
            "stage": "baseline",
            "version": baselines.VERSION,
            "kind": kind,
            "network": network_in_key(config.network),
            "settings": asdict(config.baseline),
            "data": manifest.read_manifest(data).fingerprint,
            "seed": seed,
            "precision": config.precision,
        }
    )
    return storage.join(results.stage_uri(config.store, key), "model")
