"""A sweep's report and figures in MLflow."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from pipelines import storage
from pipelines.ablation import report
from pipelines.ablation.by_setting import in_words
from pipelines.ablation.cells import failures
from pipelines.ablation.config import AblateConfig
from pipelines.errors import UserError, first_line
from pipelines.tracking import registry, runs
from pipelines.tracking.client import client, tracking_uri
from pipelines.tracking.models import DESCRIPTION_TAG
from pipelines.tracking.reports import Report

CELL_PARAMETERS = ("pretext", "strategy", "adversarial", "target", "layers", "seed", "steps")


def publish_sweep(config: AblateConfig, found: dict[str, Any], console: Console) -> bool:
    """Write the report to the store and log it to MLflow; whether that has it."""
    home = storage.join(storage.absolute(config.store), "ablate", found["key"][:16])
    written = Report("ablation", report.page(found, _panels(found)), found)
    place = written.write(home)
    console.print(report.table(found))
    console.print(found["verdict"])
    for line in in_words(found["settings"].get(found["metric"], ())):
        console.print(line, soft_wrap=True)
    console.print(f"report: {place}", soft_wrap=True)
    uri = tracking_uri(config.tracking_uri, config.store)
    try:
        missing = _log(config, found, uri, written)
    except Exception as error:  # the sweep is done and stored; a server that is away costs nothing
        reason = first_line(error)
        console.print(f"warning: {uri} does not have the sweep yet ({reason}); run it again later")
        return False
    if missing:
        lacking = f"warning: {uri} does not have the training runs of {'; '.join(missing)}"
        console.print(lacking, soft_wrap=True)
    return True


def _panels(found: dict[str, Any]) -> dict[str, bytes]:
    """The same validation images filled by the first seed of every arm."""
    return {
        cell["arm"]: storage.read_bytes(cell["panel"])
        for cell in found["cells"]
        if cell["seed"] == 0 and cell["steps"] == found["steps"] and cell["panel"]
    }


def _log(config: AblateConfig, found: dict[str, Any], uri: str, written: Report) -> list[str]:
    """Parent run with the report, one child per cell; the training runs lie below the children.

    Returns:
        the cells whose training run the server does not have: it was on another one.
    """
    spec = runs.RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=found["key"],
        name=f"{report.heading(found)}, {found['key'][:8]}",
        params={"strategies": config.strategies, "adversarial": config.adversarial,
                "seeds": config.seeds, "steps": config.pretrain.steps,
                "preset": config.pretrain.preset, "metric": found["metric"]},
        tags={"stage": "ablation", "dataset_fingerprint": found["dataset_fingerprint"]},
    )  # fmt: skip
    server = client(uri)
    missing = []
    with registry.open_run(spec, good=not failures(found)) as parent:
        for cell in found["cells"]:
            name = f"{cell['arm']} seed {cell['seed']}"
            below = replace(
                spec,
                key=storage.content_key([found["key"], cell["arm"], cell["seed"], cell["steps"]]),
                name=name,
                params={n: cell[n] for n in CELL_PARAMETERS if cell.get(n) is not None},
                tags={"stage": "cell", "mlflow.parentRunId": parent},
            )
            with registry.open_run(below, good=cell["status"] == "done") as child:
                _log_cell(server, child, cell)
                run_id = cell["tracking_run_id"]
                if run_id and not _put_below(uri, run_id, child):
                    missing.append(f"{name}, {cell['steps']} steps")
        for tag in ("verdict", DESCRIPTION_TAG):  # a column of the list, and the description
            server.set_tag(parent, tag, found["verdict"])
        written.log(server, parent)
    return missing


def _log_cell(server: Any, child: str, cell: dict[str, Any]) -> None:
    """Scores and cost of a cell, and why it failed."""
    numbers = {
        **cell["scores"],
        "cost/cpu_hours": cell["cpu_hours"],
        "cost/gpu_hours": cell["gpu_hours"],
    }
    for name, value in numbers.items():
        server.log_metric(child, name.replace("%", " percent"), value, step=0)
    if cell["error"]:
        server.set_tag(child, "error", cell["error"])


def _put_below(uri: str, run_id: str, child: str) -> bool:
    """Put a training run below that of its cell; False when the server does not have it."""
    try:
        facts = registry.run_facts(uri, run_id)
    except UserError:
        return False
    registry.tag_run(uri, child, "training_run_id", run_id)
    if "mlflow.parentRunId" not in facts.tags:
        registry.tag_run(uri, run_id, "mlflow.parentRunId", child)
    return True
