"""What a job prints when it has ended: the page of its store, and the commands that follow it.

The jobs alone call this. A stage that another one starts, or a Python user, is told nothing.
"""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ce_model.network_config import ALEXNET
from pipelines import storage
from pipelines.errors import UserError, first_line
from pipelines.runtime.progress import plain_console
from pipelines.store_page.write import write_store_page

if TYPE_CHECKING:  # each job imports what it needs, and no more
    from pipelines.ablation.config import AblateConfig
    from pipelines.embed.config import EmbedConfig
    from pipelines.evaluation.config import EvaluateConfig
    from pipelines.export.config import ExportConfig
    from pipelines.inpaint.config import InpaintConfig
    from pipelines.prepare.config import PrepareConfig
    from pipelines.pretrain.config import PretrainConfig
    from pipelines.promotion.config import PromoteConfig
    from pipelines.workflow.config import WorkflowConfig

STORE = "store"  # the default of every job
SQLITE = "sqlite:"
PHOTO, MASK = "PHOTO.jpg", "MASK.png"  # for the user's own

Command = list[str]


def after_prepare(config: "PrepareConfig", dataset: str) -> None:
    """The card, and how to train on the dataset."""
    if config.dry_run:
        return
    console = plain_console(soft_wrap=True)
    console.print(f"card:  {storage.join(dataset, 'card.html')}")
    if storage.is_within(dataset, storage.absolute(config.store)):
        show_store_page(config.store)
    show_next([command("pretrain", source=shown(dataset), **_store(config))])


def after_pretrain(config: "PretrainConfig", summary: Mapping[str, Any]) -> None:
    """How to use, to measure and to look at what was trained."""
    show_store_page(config.store)
    stage, dataset = shown(_stage(summary["model"])), shown(summary["dataset"])
    where = _store(config)
    if config.preset == "features":
        use = [command("embed", model=stage, source=dataset, output="features", **where)]
        other = None if config.encoder == ALEXNET else config.encoder
        measure = command(
            "evaluate", model=(stage, "random"), network__preset="features", network__output="full",
            network__encoder=other, data=dataset, tasks=("linear", "knn"), **where,
        )  # fmt: skip
    else:
        use = [
            command("serve", model=stage, **where),
            command("inpaint", model=stage, images=PHOTO, masks=MASK, output="filled", **where),
        ]
        holes = tuple(dict.fromkeys(("central", summary["strategy"])))  # gates look at the latter
        measure = command(
            "evaluate", model=stage, data=dataset, tasks=("inpainting", "linear"), **where,
            inpainting__strategies=holes,
        )  # fmt: skip
    show_next([*use, measure, *mlflow_ui(str(summary["tracking_uri"]))])


def after_evaluate(config: "EvaluateConfig", report: Mapping[str, Any]) -> None:
    """How to promote the first model that has a run."""
    show_store_page(config.store)
    runs = [model["run_id"] for model in report["models"] if model["run_id"]]
    promote = [command("promote", run=run, **_store(config)) for run in runs[:1]]
    show_next([*promote, *_database(config)])


def after_ablate(config: "AblateConfig", found: Mapping[str, Any]) -> None:
    """How to use the model of the best arm; nothing after a scheduled start, which nobody reads."""
    if "cells" not in found:
        return
    show_store_page(config.store)
    arms = [arm["arm"] for arm in found["comparisons"].get(found["metric"], {}).get("arms", ())]
    best = [
        cell
        for cell in found["cells"]
        if cell["arm"] in arms[:1] and cell["steps"] == found["steps"] and cell["model"]
    ]
    use: list[Command] = []
    for cell in best[:1]:
        stage = shown(_stage(cell["model"]))
        if config.pretrain.preset != "features":
            use.append(command("serve", model=stage, **_store(config)))
        if cell["tracking_run_id"]:
            use.append(command("promote", run=cell["tracking_run_id"], **_store(config)))
    show_next([*use, *_database(config)])


def after_workflow(config: "WorkflowConfig", found: Mapping[str, Any]) -> None:
    """How to use the champion, or the model that no gate has seen; nothing after a plan."""
    results = found["results"]
    if not results:
        return
    show_store_page(config.store)
    where = _store(config)
    use: list[Command] = []
    if "promote" in results:
        use = _champion(config.name, where, fills=config.pretrain.preset != "features")
    elif "pretrain" in results and config.pretrain.preset != "features":
        use = [command("serve", model=shown(_stage(results["pretrain"]["model"])), **where)]
    show_next([*use, *_database(config)])


def after_promote(config: "PromoteConfig", *, fills: bool | None) -> None:
    """How to use the new champion and to go back; None: the champion did not change."""
    if fills is None:
        return
    where = _store(config)
    back = [*command("promote", name=config.name, **where), "--rollback"]
    show_next([*_champion(config.name, where, fills=fills), back])


def after_inpaint(config: "InpaintConfig") -> None:
    """The page with a brush, for holes that no mask has."""
    show_next([command("serve", model=config.model, **_store(config))])


def after_export(config: "ExportConfig") -> None:
    """The card says how to load it elsewhere."""
    console = plain_console(soft_wrap=True)
    console.print(f"card:  {storage.join(storage.absolute(config.output), 'README.md')}")


def after_embed(config: "EmbedConfig", features: str) -> None:
    """How to find neighbours of an image."""
    if storage.is_within(features, storage.absolute(config.store)):
        show_store_page(config.store)
    if not config.query:
        show_next([[*command("embed", **_changed(config)), "--query", PHOTO]])


def show_store_page(store: str) -> None:
    """Rewrite the page of a store and say where it is; the job is done whether that works or not.

    A store that is away says so in one line.
    """
    console = plain_console(soft_wrap=True)
    try:
        console.print(f"store: {write_store_page(store)}")
    except (OSError, UserError) as error:
        console.print(f"warning: the page of the store is not as it should be: {first_line(error)}")


def show_next(commands: list[Command]) -> None:
    """Print commands as they can be pasted."""
    if commands:
        lines = ["next:", *(f"  {shlex.join(words)}" for words in commands)]
        plain_console(soft_wrap=True).print("\n".join(lines))


def command(job: str, **flags: Any) -> Command:
    """A command line of a job, with the flags that are not None; `a__b` is `--a.b`."""
    words = _start(job)
    for name, value in flags.items():
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            flag = name.replace("__", ".").replace("_", "-")
            words += [f"--{flag}", *map(str, values)]
    return words


def _start(job: str) -> Command:
    """Whatever starts a job here: its file beside that of this job, or the installed package."""
    here = Path(sys.argv[0])
    if here.parent.name == "jobs" and here.suffix == ".py":
        return [_program("python"), str(here.with_name(f"{job}.py"))]
    return [_program("python"), "-m", "pipelines", job]


def _program(name: str) -> str:
    """A program of this environment, as it is typed where we are."""
    path = Path(sys.executable).with_name(name)
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return name if shutil.which(name) == str(path) else str(path)


def mlflow_ui(tracking_uri: str) -> list[Command]:
    """How to look at what is in a database; a server is looked at where it is."""
    if not tracking_uri.startswith(SQLITE):
        return []
    return [[_program("mlflow"), "ui", "--backend-store-uri", tracking_uri]]


def _database(config: Any) -> list[Command]:
    """How to look at where a job recorded its runs."""
    from pipelines.tracking.client import tracking_uri

    return mlflow_ui(tracking_uri(config.tracking_uri, config.store))


def shown(uri: str) -> str:
    """A local place as it is typed where we are."""
    if not storage.is_local(uri):
        return uri
    path = storage.local_path(storage.absolute(uri))
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _champion(name: str, where: Mapping[str, Any], *, fills: bool) -> list[Command]:
    reference = f"models:/{name}@champion"
    serve = [command("serve", model=reference, **where)] if fills else []
    return [*serve, command("promote", explain=reference, **where)]


def _store(config: Any) -> dict[str, Any]:
    """The flags without which the next job would look elsewhere."""
    store = None if config.store == STORE else config.store
    return {"store": store, "tracking_uri": config.tracking_uri}


def _stage(model: str) -> str:
    """The folder of a training, of the model folder in it."""
    return model.removesuffix("/model")


def _changed(config: Any) -> dict[str, Any]:
    """The settings of a config that are not the usual ones."""
    usual = {each.name: each.default for each in dataclasses.fields(config)}
    given = {name: getattr(config, name) for name in usual}
    return {name: value for name, value in given.items() if value != usual[name]}
