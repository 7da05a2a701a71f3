"""The evaluation stage: measure what is missing, in parallel, then write the report."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from ce_model.network_config import ALEXNET, INPAINTING, NetworkConfig
from ce_model.networks import predicts_images
from pipelines import storage
from pipelines.errors import UserError
from pipelines.evaluation import encoders, plan, report, results
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data.ensure import ensure_usable
from pipelines.evaluation.executor import Executor, precision_of_workers, with_baselines
from pipelines.evaluation.settings import TaskName
from pipelines.evaluation.task import Job
from pipelines.models.files import MODEL
from pipelines.models.resolve import (
    BASELINES,
    ModelRef,
    resolve_model,
    resolve_named,
    run_of,
    untrained_ref,
)
from pipelines.runtime import cluster
from pipelines.runtime.progress import plain_console
from pipelines.runtime.shared_folder import require_shared
from pipelines.tracking.client import client, describe_error, require_access, tracking_uri
from pipelines.tracking.recorder import Recorder
from pipelines.tracking.reports import Report
from pipelines.tracking.runs import RunSpec

NAME_WIDTH = 16  # characters of a line of a row's name, at the least
BORDER = 3  # characters between two columns of a table
ABOUT = {
    "inpainting": "Errors on [0, 1] pixels per image, then averaged; PSNR in dB.",
    "linear": "Ridge classifier on frozen features of each layer; accuracy on the test split.",
    "knn": "Vote of the nearest training images on frozen features.",
    "finetune": "All layers fine-tuned",
    "detection": "Fast R-CNN on selective search; VOC average precision over the classes",
    "segmentation": "FCN-32s; mean IoU over the classes, void left out",
    "retrieval": "Nearest neighbours of the visible context; the centre is hidden everywhere.",
}


def evaluate_models(config: EvaluateConfig) -> dict[str, Any]:
    """Measure all models on all tasks; data that no task can read as it is, are prepared first.

    Returns:
        the report that was written, and `delivered`: whether MLflow has all of it, too.
    """
    uri = tracking_uri(config.tracking_uri, config.store)
    require_access(uri)
    given = {ref: _subject(ref, config, uri) for ref in config.model}
    encoders.require_distinct(given)
    with cluster.connect_once():
        data = tuple(ensure_usable(each, config.store) for each in config.data)
        return _evaluate(replace(config, data=data), given, uri)


def _about(task: TaskName, config: EvaluateConfig) -> str:
    """What a section of the report measures, and where the rates of a training came from."""
    tuning = TASKS[task].settings_of(config).get("tuning")
    if tuning is None:
        return ABOUT[task]
    rates = tuning["learning_rates"]
    how = (
        f"every row was given, {rates[0]:g}"
        if len(rates) == 1
        else "each row was chosen on a fifth of the training images"
    )
    return f"{ABOUT[task]}; the learning rate of {how}."


def _evaluate(
    config: EvaluateConfig, given: dict[str, ModelRef | None], uri: str
) -> dict[str, Any]:
    console = plain_console()
    layouts = plan.layouts_of(config)
    fingerprints = plan.fingerprints_of(config, layouts)  # bad data is found before any work
    plan.require_measurable(_all(given, config), config, layouts)
    with storage.naming_full(config.store), cluster.connect() as resources:
        require_shared("store", config.store)
        config = replace(config, precision=precision_of_workers(config, resources))
        room = Executor(config, resources, console)
        subjects = with_baselines(given, config, layouts, room)
        jobs = plan.jobs_of(subjects, config, layouts, fingerprints)
        room.search(plan.to_search(config, layouts))
        room.perform(jobs)
    found = _gather(jobs, subjects, config, fingerprints)
    figures = _figures(jobs, found)
    delivered = _publish(found, figures, config, uri, subjects, console)
    return {**found, "delivered": delivered}


def _subject(ref: str, config: EvaluateConfig, uri: str) -> ModelRef | None:
    """A model that is there, or random weights; None for what has to be trained first."""
    name, rest = resolve_named(ref)
    if rest == "random":
        return untrained_ref(name, "random", config.network)
    if rest == "random-kmeans":
        return untrained_ref(name, "random-kmeans", config.network)
    if rest == "autoencoder" and not predicts_images(config.network):
        raise UserError(
            f"model is '{ref}' with network.preset {config.network.preset}, which predicts no "
            "images; take --network.preset alexnet for this row, or leave it out"
        )
    if rest in BASELINES:
        return None
    return resolve_model(ref, store=config.store, tracking_uri=uri)


def _all(given: dict[str, ModelRef | None], config: EvaluateConfig) -> list[ModelRef]:
    """What is measured, with those that are trained first."""
    return [
        subject or untrained_ref(resolve_named(ref)[0], "random", config.network)
        for ref, subject in given.items()
    ]


def _gather(
    jobs: list[Job],
    subjects: list[tuple[ModelRef, int]],
    config: EvaluateConfig,
    fingerprints: plan.Fingerprints,
) -> dict[str, Any]:
    """What `report.json` holds."""
    sections = []
    keys = {(task, storage.absolute(uri)): key for (task, uri), key in fingerprints.items()}
    names = plan.distinct(job.data_uri for job in jobs)
    for task, data in dict.fromkeys((job.task, job.data_uri) for job in jobs):
        chosen = [job for job in jobs if (job.task, job.data_uri) == (task, data)]
        rows, notes = [], {}
        for job in chosen:
            measured = results.find_committed(job.uri)
            assert measured is not None
            model = "" if job.subject is None else job.subject.name
            rows.append([{"model": model, **row} for row in measured.rows])
            notes[plan.title(job)] = measured.notes
        sections.append(
            {
                "title": f"{task}, {names[data]}",
                "task": task,
                "data": data,
                "data_key": keys[task, data],
                "about": _about(task, config),
                "rows": results.over_seeds(rows),
                "notes": notes,
                "stages": [job.uri for job in chosen],
            }
        )
    unique = {(s.name, s.identity): s for s, _ in subjects}
    return {
        "format_version": 1,
        "seeds": list(config.seeds),
        "precision": config.precision,
        "models": [_describe(subject) for subject in unique.values()],
        "sections": sections,
    }


def _describe(subject: ModelRef) -> dict[str, Any]:
    network = subject.network
    origin = "drawn with each seed"
    if subject.uri:
        info = storage.read_json(storage.join(subject.uri, MODEL))["info"]
        known = ("strategy", "pretext", "steps", "seed")
        origin = ", ".join(f"{name} {info[name]}" for name in known if name in info)
    return {
        "name": subject.name,
        "kind": subject.kind,
        "sha256": subject.sha256,
        "network": f"{network.preset}, {network.output}{_encoder(network)}{_pretext(network)}",
        # Absent for holes, so that reports made before keep their key.
        **({} if network.pretext == INPAINTING else {"pretext": network.pretext}),
        "origin": origin,
        "uri": subject.uri,
        "run_id": subject.run_id,
    }


def _encoder(network: NetworkConfig) -> str:
    return "" if network.encoder == ALEXNET else f", {network.encoder}"


def _pretext(network: NetworkConfig) -> str:
    return "" if network.pretext == INPAINTING else f", pretext {network.pretext}"


def _figures(jobs: list[Job], found: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """Figures by section; of several seeds the first is shown."""
    titles = {(s["task"], s["data"]): s["title"] for s in found["sections"]}
    figures: dict[str, dict[str, bytes]] = {}
    for job in sorted(jobs, key=lambda job: job.subject is None):  # models before other methods
        section = figures.setdefault(titles[job.task, job.data_uri], {})
        for title, data in results.read_figures(job.uri).items():
            name = title if job.subject is None else f"{title} ({job.subject.name})"
            section.setdefault(name, data)
    return {name: _in_order(section) for name, section in figures.items()}


def _in_order(section: dict[str, bytes]) -> dict[str, bytes]:
    """Of filled holes first what is given and the truth; the report parts kinds of hole."""

    def place(title: str) -> int:
        return {"context": 0, "picture": 1}.get(title.partition(" | ")[2], 2)

    return {title: section[title] for title in sorted(section, key=place)}


def _publish(
    found: dict[str, Any],
    figures: dict[str, dict[str, bytes]],
    config: EvaluateConfig,
    uri: str,
    subjects: list[tuple[ModelRef, int]],
    console: Console,
) -> bool:
    """Report to the store, to --report, to MLflow, and to the runs that the models came from.

    Returns:
        whether MLflow has all of it.
    """
    key = storage.content_key([s["stages"] for s in found["sections"]] + [found["models"]])
    home = storage.join(storage.absolute(config.store), "evaluate", "reports", key[:16])
    found = {**found, "at": _made_at(home)}
    written = Report("report", report.page(found, figures), found)
    place = written.write(home)
    if config.report:
        place = written.write(config.report)
    spec = RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=key,
        name=f"{report.heading(found)}, {key[:8]}",
        params={"tasks": config.tasks, "data": config.data, "seeds": config.seeds},
        tags={"stage": "evaluate", "models": ", ".join(m["name"] for m in found["models"])},
    )
    recorder = Recorder(spec)
    recorder.metrics(metrics_of(found), step=0)
    for name, data in written.files().items():
        recorder.artifact(name, data)
    outcome = recorder.finish("FINISHED")
    _table(found, console)
    console.print(f"report: {place}", soft_wrap=True)
    problem = outcome.problem or _attach(written, f"evaluation/{key[:8]}", uri, subjects)
    if problem is not None:
        console.print(f"warning: MLflow does not have it yet ({problem})", soft_wrap=True)
    return problem is None


def _made_at(home: str) -> str:
    """When a report was made first: a rerun does not make it newer than others."""
    place = storage.join(home, "report.json")
    before = storage.read_json(place).get("at") if storage.exists(place) else None
    return before or datetime.now(UTC).isoformat(timespec="seconds")


def _attach(
    written: Report, folder: str, uri: str, subjects: list[tuple[ModelRef, int]]
) -> str | None:
    """Give a report to the runs that the models came from; returns why they do not have them."""
    try:
        server = client(uri)
        # A run that the server did not return at the start is requested again.
        runs = [s.run_id or run_of(s.uri, uri) for s, _ in subjects if s.uri]
        for run_id in dict.fromkeys(run for run in runs if run):
            written.log(server, run_id, folder)
    except Exception as error:  # whatever the server does, the measurements are done
        return describe_error(uri, error)
    return None


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
    """The main table of every section, in parts where the screen is too narrow for all columns."""
    for section in found["sections"]:
        grid = report.main_grid(section)
        title = f"{section['title']}: {grid.caption}"
        # Deviations stand below their means.
        cells = [[cell.replace(" \u00b1", "\n\u00b1") for cell in row] for row in grid.cells]
        for part in _parts([grid.head, *cells], console.width):
            table = Table(title=title, title_justify="left")
            # Several names begin alike: never cut, and numbers leave them room.
            table.add_column(grid.head[0], overflow="fold", min_width=NAME_WIDTH)
            for column in part:
                table.add_column(grid.head[column], justify="right", no_wrap=True)
            for row in cells:
                table.add_row(row[0], *(row[column] for column in part))
            console.print(table, crop=False)


def _parts(rows: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Numbers of the columns of each part of a table that fits into `width` letters."""
    room = width - BORDER - (NAME_WIDTH + BORDER)
    part: list[int] = []
    used = 0
    for column in range(1, len(rows[0])):
        needed = BORDER + max(len(line) for row in rows for line in row[column].split("\n"))
        if part and used + needed > room:
            yield part
            part, used = [], 0
        part.append(column)
        used += needed
    yield part
