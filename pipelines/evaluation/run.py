"""The evaluation stage: measure what is missing, in parallel, then write the report."""

import json
import re
from dataclasses import asdict
from typing import Any

import ray
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ce_model import training
from ce_model.networks import NetworkConfig
from pipelines import cluster, dataset, storage, tracking, weights
from pipelines.cluster import Resources
from pipelines.errors import UserError
from pipelines.evaluation import baselines, models, proposals, report, results, voc, work
from pipelines.evaluation import inpainting as filling
from pipelines.evaluation.config import (
    KEY_VERSION,
    WANTED,
    EvaluateConfig,
    TaskName,
    settings_of,
)
from pipelines.evaluation.inpainting import Holes
from pipelines.evaluation.models import Subject
from pipelines.evaluation.pictures import Layout, Pictures, layout_of, read_pictures
from pipelines.evaluation.work import Job

ABOUT = {
    "inpainting": "Errors on [0, 1] pixels per picture, then averaged; PSNR in dB.",
    "linear": "Ridge classifier on frozen features of each layer; accuracy on the test split.",
    "knn": "Vote of the nearest training pictures on frozen features.",
    "finetune": "All layers fine-tuned; the learning rate of each row was chosen on a fifth of the "
    "training pictures.",
    "detection": "Fast R-CNN on selective search; VOC average precision over the classes; the "
    "learning rate of each row was chosen on a fifth of the training pictures.",
    "segmentation": "FCN-32s; mean IoU over the classes, void left out; the learning rate of each "
    "row was chosen on a fifth of the training pictures.",
    "retrieval": "Nearest neighbours of the visible context; the centre is hidden everywhere.",
}


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Measure all models on all tasks; returns the report that was written."""
    console = Console(stderr=True)
    uri = tracking.tracking_uri(config.tracking_uri, config.store)
    layouts = {data: layout_of(data) for data in config.data}
    for task in config.tasks:
        _data_for(task, layouts)
    given = {ref: _subject(ref, config, uri) for ref in config.model}
    with cluster.connected() as resources:
        room = Room(config, resources, console)
        subjects = _with_baselines(given, config, layouts, room)
        jobs = list(_jobs(subjects, config, layouts))
        room.search(_to_search(config, layouts))
        room.perform(jobs)
    found = _gather(jobs, subjects, config)
    figures = _figures(jobs, found)
    _publish(found, figures, config, uri, subjects, console)
    return found


class Room:
    """Runs measurements as Ray tasks, as many at once as fit."""

    def __init__(self, config: EvaluateConfig, resources: Resources, console: Console) -> None:
        """Nothing runs yet."""
        if config.cpus_per_task > resources.cpus:
            raise UserError(
                f"cpus_per_task is {config.cpus_per_task}; the cluster has {resources.cpus} CPUs"
            )
        self._config, self._console = config, console
        self._options = {"num_cpus": config.cpus_per_task, "num_gpus": min(1, resources.gpus)}

    def perform(self, jobs: list[Job]) -> None:
        """Do what is not committed yet.

        Raises:
            UserError: some could not be done; the others are, and stay done.
        """
        missing = list(
            {job.uri: job for job in jobs if results.committed(job.uri) is None}.values()
        )
        done = len({job.uri for job in jobs}) - len(missing)
        if done:
            self._console.print(f"already measured: {done} of {done + len(missing)}")
        work_remotely = ray.remote(work.perform).options(**self._options)
        names = {work_remotely.remote(job, self._config): _title(job) for job in missing}
        self._wait(names, "measuring")

    def search(self, pictures: list[Pictures]) -> None:
        """Find the regions of pictures for detection, unless they are kept already."""
        search_remotely = ray.remote(_search).options(num_cpus=1)
        store = self._config.store
        missing = [p for p in pictures if not storage.exists(proposals.uri_of(store, p))]
        self._wait(
            {search_remotely.remote(store, part): part.keys[0] for part in missing},
            "selective search",
        )

    def train(self, wanted: dict[str, tuple[Any, ...]]) -> None:
        """Train baselines that are not there yet, by the folder of the model."""
        train_remotely = ray.remote(_train_baseline).options(**self._options)
        names = {
            train_remotely.remote(uri, *arguments, self._config.cpus_per_task): uri
            for uri, arguments in wanted.items()
            if not storage.exists(storage.join(uri, weights.MODEL))
        }
        self._wait(names, "training baselines")

    def _wait(self, names: dict[Any, str], what: str) -> None:
        if not names:
            return
        problems = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            bar = progress.add_task(what, total=len(names))
            waiting = list(names)
            while waiting:
                ready, waiting = ray.wait(waiting, num_returns=1)
                for reference in ready:
                    if message := ray.get(reference):
                        problems.append(f"{names[reference]}: {message}")
                    progress.advance(bar)
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))


def _search(store: str, pictures: Pictures) -> None:
    proposals.ensure(store, pictures)


def _to_search(config: EvaluateConfig, layouts: dict[str, Layout]) -> list[Pictures]:
    if "detection" not in config.tasks:
        return []
    return [
        chunk
        for data in _data_for("detection", layouts)
        for split in (config.voc.train, config.voc.test)
        for chunk in proposals.chunks(voc.read_annotated(data, split, config.voc.classes).pictures)
    ]


def _train_baseline(
    uri: str,
    kind: baselines.Kind,
    network: NetworkConfig,
    data: str,
    settings: baselines.BaselineSettings,
    seed: int,
    precision: training.Precision,
    threads: int,
) -> str | None:
    torch.set_num_threads(threads)
    dtype = training.resolve_precision(precision, models.device())
    try:
        baselines.train(kind, network, data, settings, seed, dtype, uri)
    except UserError as error:
        return str(error)
    return None


def _subject(ref: str, config: EvaluateConfig, uri: str) -> Subject | None:
    """A model that is there, or random weights; None for what has to be trained first."""
    name, rest = models.named(ref)
    if rest == "random":
        return models.untrained(name, "random", config.network)
    if rest == "random-kmeans":
        return models.untrained(name, "random-kmeans", config.network)
    if rest in models.BASELINES:
        return None
    return models.resolve(ref, store=config.store, tracking_uri=uri)


def _with_baselines(
    given: dict[str, Subject | None],
    config: EvaluateConfig,
    layouts: dict[str, Layout],
    room: Room,
) -> list[tuple[Subject, int]]:
    """Every subject with the seeds it is measured with; baselines are trained once per seed."""
    found = [(s, seed) for s in given.values() if s is not None for seed in config.seeds]
    wanted: dict[str, tuple[Any, ...]] = {}
    names: dict[str, tuple[str, baselines.Kind, int]] = {}
    for ref in (ref for ref, subject in given.items() if subject is None):
        name, rest = models.named(ref)
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
        found.append((models.trained(name, uri, kind=kind), seed))
    return found


def _baseline_uri(kind: str, data: str, seed: int, config: EvaluateConfig) -> str:
    key = storage.content_key(
        {
            "stage": "baseline",
            "version": KEY_VERSION,
            "kind": kind,
            "network": asdict(config.network),
            "settings": asdict(config.baseline),
            "data": dataset.read_manifest(data).fingerprint,
            "seed": seed,
            "dtype": _dtype(config),
        }
    )
    return storage.join(results.stage_uri(config.store, key), "model")


def _dtype(config: EvaluateConfig) -> str:
    return str(training.resolve_precision(config.precision, models.device()))


def _data_for(task: TaskName, layouts: dict[str, Layout]) -> list[str]:
    suited = [uri for uri, layout in layouts.items() if layout in WANTED[task]]
    if not suited:
        raise UserError(
            f"task '{task}' has no data; it needs one of {', '.join(WANTED[task])}, and --data "
            f"gives {', '.join(f'{uri} ({layout})' for uri, layout in layouts.items())}"
        )
    return suited


def _jobs(
    subjects: list[tuple[Subject, int]], config: EvaluateConfig, layouts: dict[str, Layout]
) -> list[Job]:
    """All measurements. Filling and retrieval do not depend on the seed of trained models."""
    fingerprints = {
        (task, uri): fingerprint(task, uri, layouts[uri], config)
        for task in config.tasks
        for uri in _data_for(task, layouts)
    }
    database = next((u for u, layout in layouts.items() if layout in ("prepared", "classes")), None)
    jobs = []
    for task in config.tasks:
        for data in _data_for(task, layouts):
            if task == "inpainting":
                pairs = [(s, config.seeds[0]) for s, _ in subjects if s.uri]
                pairs = list(dict.fromkeys(pairs))
                own = data if layouts[data] != "pictures" else database
                holes = _holes([s for s, _ in pairs], config)
                jobs.append(_job(task, None, holes, data, own, 0, config, fingerprints))
                jobs += [_job(task, s, (), data, own, 0, config, fingerprints) for s, _ in pairs]
            else:
                jobs += [
                    _job(task, s, (), data, None, seed, config, fingerprints)
                    for s, seed in subjects
                ]
    return jobs


def _holes(subjects: list[Subject], config: EvaluateConfig) -> tuple[Holes, ...]:
    """Every kind of hole that a model fills, so that the classical methods fill it too."""
    found = [
        holes
        for subject in subjects
        for holes in filling.holes_of(weights.load_model(subject.uri), config.inpainting.strategies)
    ]
    return tuple(dict.fromkeys(found)) or (Holes(128, "central", 4),)


def _job(
    task: TaskName,
    subject: Subject | None,
    holes: tuple[Holes, ...],
    data: str,
    database: str | None,
    seed: int,
    config: EvaluateConfig,
    fingerprints: dict[tuple[TaskName, str], str],
) -> Job:
    key = storage.content_key(
        {
            "stage": "evaluate",
            "version": KEY_VERSION,
            "task": task,
            "settings": settings_of(config, task),
            "subject": None if subject is None else [subject.kind, subject.identity],
            "holes": holes,
            "data": fingerprints[task, data],
            "database": None if database is None else fingerprints[task, database],
            "seed": seed,
            "dtype": _dtype(config),
        }
    )
    return Job(
        task=task,
        subject=subject,
        holes=holes,
        data_uri=storage.absolute(data),
        database_uri=None if database is None else storage.absolute(database),
        seed=seed,
        uri=results.stage_uri(config.store, key),
    )


def fingerprint(task: TaskName, uri: str, layout: Layout, config: EvaluateConfig) -> str:
    """Content key of everything that a measurement could read there."""
    if task == "segmentation":
        parts = (config.segmentation.train, config.segmentation.test)
        return storage.content_key([voc.read_mapped(uri, part).fingerprint for part in parts])
    if layout == "voc":
        parts, names = (config.voc.train, config.voc.test), config.voc.classes
        found = [voc.read_annotated(uri, part, names).fingerprint for part in parts]
        return storage.content_key([names, found])
    if layout == "prepared":
        return dataset.read_manifest(uri).fingerprint
    splits = ("val",) if layout == "pictures" else ("train", "val")
    return storage.content_key([read_pictures(uri, split, 0).fingerprint for split in splits])


def _title(job: Job) -> str:
    name = "classical" if job.subject is None else job.subject.name
    return f"{job.task} of {name} on {_short(job.data_uri)}, seed {job.seed}"


def _short(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _gather(
    jobs: list[Job], subjects: list[tuple[Subject, int]], config: EvaluateConfig
) -> dict[str, Any]:
    """What `report.json` holds."""
    sections = []
    for task, data in dict.fromkeys((job.task, job.data_uri) for job in jobs):
        chosen = [job for job in jobs if (job.task, job.data_uri) == (task, data)]
        rows, notes = [], {}
        for job in chosen:
            measured = results.committed(job.uri)
            assert measured is not None
            name = "" if job.subject is None else job.subject.name
            rows.append([{"model": name, **row} for row in measured.rows])
            notes[_title(job)] = measured.notes
        sections.append(
            {
                "title": f"{task}, {_short(data)}",
                "task": task,
                "data": data,
                "about": ABOUT[task],
                "rows": results.over_seeds(rows),
                "notes": notes,
                "stages": [job.uri for job in chosen],
            }
        )
    unique = {(s.name, s.identity): s for s, _ in subjects}
    return {
        "format_version": 1,
        "seeds": list(config.seeds),
        "precision": _dtype(config),
        "models": [_describe(subject) for subject in unique.values()],
        "sections": sections,
    }


def _describe(subject: Subject) -> dict[str, Any]:
    network = subject.network
    origin = "drawn with each seed"
    if subject.uri:
        info = storage.read_json(storage.join(subject.uri, weights.MODEL))["info"]
        known = ("strategy", "steps", "seed")
        origin = ", ".join(f"{name} {info[name]}" for name in known if name in info)
    return {
        "name": subject.name,
        "kind": subject.kind,
        "sha256": subject.sha256,
        "network": f"{network.preset}, {network.output}",
        "origin": origin,
        "uri": subject.uri,
        "run_id": subject.run_id,
    }


def _figures(jobs: list[Job], found: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """Figures by section; of several seeds the first is shown."""
    titles = {(s["task"], s["data"]): s["title"] for s in found["sections"]}
    figures: dict[str, dict[str, bytes]] = {}
    for job in jobs:
        section = figures.setdefault(titles[job.task, job.data_uri], {})
        for title, data in results.read_figures(job.uri).items():
            name = title if job.subject is None else f"{title} ({job.subject.name})"
            section.setdefault(name, data)
    return {name: dict(sorted(section.items())) for name, section in figures.items()}


def _publish(
    found: dict[str, Any],
    figures: dict[str, dict[str, bytes]],
    config: EvaluateConfig,
    uri: str,
    subjects: list[tuple[Subject, int]],
    console: Console,
) -> None:
    """Report to the store, to --report, to MLflow, and to the runs that the models came from."""
    page = report.page(found, figures).encode()
    text = (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()
    key = storage.content_key([s["stages"] for s in found["sections"]] + [found["models"]])
    home = storage.join(storage.absolute(config.store), "evaluate", "reports", key[:16])
    for folder in [home, *([config.report] if config.report else [])]:
        storage.publish(storage.join(folder, "report.html"), page)
        storage.publish(storage.join(folder, "report.json"), text)
    spec = tracking.RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=key,
        name=f"evaluate-{key[:8]}",
        params={"tasks": config.tasks, "data": config.data, "seeds": config.seeds},
        tags={"stage": "evaluate", "models": ", ".join(m["name"] for m in found["models"])},
    )
    recorder = tracking.Recorder(spec)
    recorder.metrics(metrics_of(found), step=0)
    recorder.artifact("report.html", page)
    recorder.artifact("report.json", text)
    outcome = recorder.finish("FINISHED")
    _table(found, console)
    console.print(f"report: {storage.join(home, 'report.html')}", highlight=False, soft_wrap=True)
    if outcome.problem is not None:
        console.print(f"warning: MLflow does not have it yet ({outcome.problem})")
        return
    for run_id in dict.fromkeys(s.run_id for s, _ in subjects if s.run_id):
        server = tracking.client(uri)
        tracking.log_bytes(server, run_id, f"evaluation/{key[:8]}/report.html", page)
        tracking.log_bytes(server, run_id, f"evaluation/{key[:8]}/report.json", text)


def metrics_of(found: dict[str, Any]) -> dict[str, float]:
    """Means as MLflow metrics: task/data/model/.../score."""
    flat = {}
    for section in found["sections"]:
        for row in section["rows"]:
            names = [str(value) for value in row.values() if isinstance(value, str) and value]
            for score, value in row.items():
                if isinstance(value, dict) and value["mean"] is not None:
                    name = "/".join([section["title"].replace(", ", "/"), *names, score])
                    flat[re.sub(r"[^\w\-. /]", "_", name)] = value["mean"]
    return flat


def _table(found: dict[str, Any], console: Console) -> None:
    """The main table of every section: the first, or that with all labels."""
    for section in found["sections"]:
        grids = report.grids(section)
        grid = grids[-1 if section["task"] == "linear" else 0]
        table = Table(title=f"{section['title']}: {grid.caption}", title_justify="left")
        for name in grid.head:
            table.add_column(name, justify="left" if name == "row" else "right")
        for row in grid.cells:
            table.add_row(*row)
        console.print(table, highlight=False)
