"""The measurements of a config, each with the key that names its result."""

from collections.abc import Iterable
from functools import lru_cache

from pipelines import storage
from pipelines.data.manifest import find_manifest
from pipelines.data.source_names import source_name
from pipelines.errors import UserError
from pipelines.evaluation import results
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import KEY_VERSION, EvaluateConfig
from pipelines.evaluation.data import proposals, voc
from pipelines.evaluation.data.images import ImageSet, layout_of
from pipelines.evaluation.settings import Layout, TaskName
from pipelines.evaluation.task import Job
from pipelines.evaluation.tasks import inpainting as filling
from pipelines.evaluation.tasks.inpainting import HoleSet
from pipelines.models import files
from pipelines.models.resolve import KEY, ModelRef


def layouts_of(config: EvaluateConfig) -> dict[str, Layout]:
    """What kind of data each URI holds.

    Raises:
        UserError: a URI is of no use, or a task has no data.
    """
    places = {storage.absolute(uri).rstrip("/"): uri for uri in config.data}  # each place once
    found = {uri: layout_of(uri) for uri in places.values()}
    for task in config.tasks:
        data_for(task, found)
    return found


def data_for(task: TaskName, layouts: dict[str, Layout]) -> list[str]:
    """The data that a task can use; none is an error."""
    suited = [uri for uri, layout in layouts.items() if layout in TASKS[task].layouts]
    if not suited:
        raise UserError(
            f"task '{task}' has no data; it needs one of {', '.join(TASKS[task].layouts)}, and "
            f"--data gives {', '.join(f'{uri} ({layout})' for uri, layout in layouts.items())}"
        )
    return suited


def require_measurable(
    subjects: Iterable[ModelRef], config: EvaluateConfig, layouts: dict[str, Layout]
) -> None:
    """Refuse before any work what a measurement would refuse.

    Raises:
        UserError: a task cannot use a model, or its data.
    """
    require_subjects(subjects, config)
    for task in config.tasks:
        for uri in data_for(task, layouts):
            TASKS[task].require_data(uri, config)


def require_subjects(subjects: Iterable[ModelRef], config: EvaluateConfig) -> None:
    """The half of `require_measurable` that needs no data."""
    for subject in subjects:
        for task in config.tasks:
            TASKS[task].require_subject(subject, config)


Fingerprints = dict[tuple[TaskName, str], str]


def fingerprints_of(config: EvaluateConfig, layouts: dict[str, Layout]) -> Fingerprints:
    """Fingerprint of the data of every task; also finds what is wrong with the data."""
    return {
        (task, uri): TASKS[task].fingerprint(uri, layouts[uri], config)
        for task in config.tasks
        for uri in data_for(task, layouts)
    }


def jobs_of(
    subjects: list[tuple[ModelRef, int]],
    config: EvaluateConfig,
    layouts: dict[str, Layout],
    fingerprints: Fingerprints,
) -> list[Job]:
    """All measurements; filling does not depend on the seed."""
    database = next((u for u, layout in layouts.items() if layout in ("prepared", "classes")), None)
    jobs: list[Job] = []
    for task in config.tasks:
        for data in data_for(task, layouts):
            if not TASKS[task].seeded:
                pairs = [(s, config.seeds[0]) for s, _ in subjects if s.uri]
                pairs = list(dict.fromkeys(pairs))
                own = data if layouts[data] != "images" else database
                holes = _holes([s for s, _ in pairs], config)
                jobs.append(_job(task, None, holes, data, own, 0, config, fingerprints))
                jobs += [_job(task, s, (), data, own, 0, config, fingerprints) for s, _ in pairs]
            else:
                jobs += [
                    _job(task, s, (), data, None, seed, config, fingerprints)
                    for s, seed in subjects
                ]
    return jobs


def _holes(subjects: list[ModelRef], config: EvaluateConfig) -> tuple[HoleSet, ...]:
    """Every kind of hole that a model fills, so that the classical methods fill it too."""
    found: list[HoleSet] = []
    for subject in subjects:
        description = storage.read_json(storage.join(subject.uri, files.MODEL))
        overlap = description["objective"]["overlap"]
        found += filling.holes_of(subject.network, overlap, config.inpainting.strategies)
    return tuple(dict.fromkeys(found)) or (HoleSet(128, "central", 4),)


def _job(
    task: TaskName,
    subject: ModelRef | None,
    holes: tuple[HoleSet, ...],
    data: str,
    database: str | None,
    seed: int,
    config: EvaluateConfig,
    fingerprints: Fingerprints,
) -> Job:
    assert config.precision != "auto"  # a key names one computation
    key = storage.content_key(
        {
            "stage": "evaluate",
            "version": KEY_VERSION,
            "task": task,
            "settings": TASKS[task].settings_of(config),
            "subject": None if subject is None else [subject.kind, subject.identity],
            "holes": holes,
            "data": fingerprints[task, data],
            "database": None if database is None else fingerprints[task, database],
            "seed": seed,
            "precision": config.precision,
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


def to_search(config: EvaluateConfig, layouts: dict[str, Layout]) -> list[ImageSet]:
    """Images that detection needs regions of, in parts."""
    if "detection" not in config.tasks:
        return []
    return [
        chunk
        for data in data_for("detection", layouts)
        for split in (config.voc.train, config.voc.test)
        for chunk in proposals.chunks(voc.read_annotated(data, split, config.voc.classes).images)
    ]


def title(job: Job) -> str:
    """What is measured, for people."""
    name = "classical" if job.subject is None else job.subject.name
    data = distinct([job.data_uri])[job.data_uri]
    return f"{job.task} of {name} on {data}, seed {job.seed}"


def distinct(uris: Iterable[str]) -> dict[str, str]:
    """What data are called: the last part, or as much of the path as tells them apart."""
    parts = {uri: _parts(uri) for uri in uris}
    names = {}
    for uri, own in parts.items():
        others = [other for other in parts.values() if other != own]
        depth = 1
        while any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        names[uri] = "/".join(own[-depth:])
    return names


@lru_cache
def _parts(uri: str) -> tuple[str, ...]:
    """Of a path; a dataset in a folder that is called by its key ends with its source's name."""
    parts = tuple(part for part in uri.split("/") if part)
    if KEY.fullmatch(parts[-1]) and (manifest := find_manifest(uri)):
        parts = (*parts, source_name(manifest.source))
    return parts
