"""The chain prepare -> pretrain -> evaluate -> promote as one graph of committed stages.

Every stage keeps its own result in the store; the graph remembers which keys are finished, runs
what is missing, and says why. The evaluations are stages of their own and run at once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import storage
from pipelines.data import manifest, sample_images
from pipelines.errors import RefusedError, UserError, first_line
from pipelines.evaluation import plan
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import KEY_VERSION, EvaluateConfig
from pipelines.evaluation.settings import InpaintingSettings, TaskName
from pipelines.models import resolve
from pipelines.prepare.plan import listing
from pipelines.prepare.sources.listing import pieces
from pipelines.pretrain import key as learning
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.recipe import measured_in, resolve_recipe
from pipelines.pretrain.run import pretrain_model
from pipelines.promotion import gates as promotion_gates
from pipelines.promotion import run as promotion
from pipelines.runtime import cluster
from pipelines.runtime.progress import plain_console
from pipelines.tracking import client, registry, runs
from pipelines.workflow import graph, stages
from pipelines.workflow.config import WorkflowConfig
from pipelines.workflow.ensure_dataset import ensure_dataset
from pipelines.workflow.execute import execute
from pipelines.workflow.graph import Planned, Stage, StageOutcome


def run_workflow(config: WorkflowConfig) -> dict[str, Any]:
    """Run or plan the graph; the summary goes to the terminal and to MLflow.

    Returns:
        `results` by stage, none of a plan, and `delivered`: whether MLflow has all of it.

    Raises:
        UserError: a stage failed; the message names it, and what the others made stays.
    """
    console = plain_console(soft_wrap=True)
    wanted = graph_of(config)
    if config.until != "promote":
        last = [s.name for s in wanted if s.kind == config.until]
        kept = {s.name for name in last for s in graph.until(wanted, name)}
        wanted = [stage for stage in wanted if stage.name in kept]
    if config.plan:
        console.print(plan_table(graph.plan(wanted, config.store)))
        return {"results": {}, "delivered": True}
    client.require_access(client.tracking_uri(config.tracking_uri, config.store))
    with cluster.connect() as resources:
        outcomes = execute(
            wanted,
            config.store,
            resources,
            concurrency=max(2, resources.cpus),
            attempts=config.attempts,
            console=console,
        )
    ended = [outcomes[stage.name] for stage in graph.sort_by_needs(wanted)]
    console.print(outcome_table(ended))
    delivered = _log(config, wanted, ended, console)
    failed = [outcome for outcome in ended if outcome.status in ("failed", "refused")]
    if failed:
        text = "; ".join(f"stage {o.name} {o.status}: {o.error}" for o in failed)
        raise (RefusedError if all(o.status == "refused" for o in failed) else UserError)(text)
    return {
        "results": {o.name: o.result for o in ended if o.result is not None},
        "delivered": delivered and all(outcome.final for outcome in ended),
    }


def graph_of(config: WorkflowConfig) -> list[Stage]:
    """The graph. Settings hold no path, so that a moved store keeps its keys."""
    training = replace(
        config.pretrain,
        source=config.source,
        store=config.store,
        tracking_uri=config.tracking_uri,
        experiment=config.experiment,
    )
    measured = {task: _evaluation(config, task, data="unknown") for task in config.tasks}
    demanded = promotion_gates.read_gates(config.gates)
    evaluations = tuple(f"evaluate {task}" for task in config.tasks)
    follows = tuple(measured.values()) if config.until in ("evaluate", "promote") else ()
    return [
        Stage(
            name="prepare",
            kind="prepare",
            run=partial(prepare, config=training),
            settings={
                "source": source_key(config.source),
                "strategy": resolve_recipe(training).strategy,
            },
        ),
        Stage(
            name="pretrain",
            kind="pretrain",
            run=partial(train, config=training, measured=follows),
            settings=_trained_with(training),
            needs=("prepare",),
            workers=config.pretrain.workers.most,
        ),
        *(
            Stage(
                name=f"evaluate {task}",
                kind="evaluate",
                run=partial(evaluate, config=config, task=task),
                settings={
                    "task": task,
                    "version": KEY_VERSION,
                    "precision": settings_of.precision,  # as given: no cluster has resolved it yet
                    **TASKS[task].settings_of(settings_of),
                },
                needs=("prepare", "pretrain"),
            )
            for task, settings_of in measured.items()
        ),
        Stage(
            name="promote",
            kind="promote",
            run=partial(promote, config=config, demanded=demanded),
            settings={"name": config.name, "gates": asdict(demanded)},
            needs=("pretrain", *evaluations),
        ),
    ]


def _trained_with(config: PretrainConfig) -> dict[str, Any]:
    """What `pretrain_key` depends on, as far as it is known before there is a dataset."""
    return learning.settings_in_key(config)  # the mean colour follows from prepare


def source_key(source: str | None) -> str:
    """What the images are: the dataset's fingerprint, or a digest of all names and sizes."""
    if source is None:
        return f"samples-{sample_images.VERSION}"
    if manifest.is_dataset(source):
        return manifest.read_manifest(source).fingerprint
    with listing(pieces(storage.absolute(source), Counter())) as found:
        if found.pieces == 0:
            raise UserError(f"source is '{source}'; there is no image in it")
        return str(found.digest)


def prepare(inputs: Mapping[str, Any], *, config: PretrainConfig) -> dict[str, Any]:
    """Stage: a dataset with the holes of the training."""
    uri = storage.absolute(ensure_dataset(config))
    return {"dataset": uri, "fingerprint": manifest.read_manifest(uri).fingerprint}


def train(
    inputs: Mapping[str, Any], *, config: PretrainConfig, measured: Sequence[EvaluateConfig] = ()
) -> dict[str, Any]:
    """Stage: the training; its result is the summary, final when the training is committed.

    Raises:
        UserError: what is to be measured of it cannot be; nothing was trained.
    """
    data = inputs["prepare"]["dataset"]
    subject = resolve.untrained_ref("model", "random", resolve_recipe(config).network)
    for requested in (replace(each, data=(data,)) for each in measured):
        plan.require_measurable([subject], requested, plan.layouts_of(requested))
    return pretrain_model(config, data)


def evaluate(
    inputs: Mapping[str, Any], *, config: WorkflowConfig, task: TaskName
) -> dict[str, Any]:
    """Stage: one measurement; its report is attached to the training run."""
    wanted = _evaluation(config, task, data=inputs["prepare"]["dataset"])
    return stages.evaluate(wanted, "model", inputs["pretrain"])


def _evaluation(config: WorkflowConfig, task: TaskName, *, data: str) -> EvaluateConfig:
    return EvaluateConfig(
        model=("model=unknown",),  # the reference is known once it is trained
        data=(data,),
        tasks=(task,),
        store=config.store,
        inpainting=_with_own_holes(config),
        precision=measured_in(config.pretrain),
        tracking_uri=config.tracking_uri,
    )


def _with_own_holes(config: WorkflowConfig) -> InpaintingSettings:
    """The usual holes and those of the training: gates look at the latter."""
    asked = config.inpainting
    own = resolve_recipe(config.pretrain).strategy
    if asked.strategies != InpaintingSettings().strategies or own in asked.strategies:
        return asked
    return replace(asked, strategies=(*asked.strategies, own))


def promote(
    inputs: Mapping[str, Any], *, config: WorkflowConfig, demanded: promotion_gates.Gates
) -> dict[str, Any]:
    """Stage: the alias, if every gate holds.

    Raises:
        RefusedError: a gate refuses.
        UserError: MLflow lacks something, so that the stage runs again next time.
    """
    if not all(map(graph.is_delivered, inputs.values())):
        raise UserError(f"not all results are there: {graph.NOT_FINAL}")
    uri = client.tracking_uri(config.tracking_uri, config.store)
    run_id = inputs["pretrain"]["tracking_run_id"]
    decision = promotion.promote(uri, run_id, config.name, demanded, config.store)
    if not decision.promoted:
        raise RefusedError(decision.text)
    return {"version": decision.version, "text": decision.text}


def plan_table(planned: list[Planned]) -> Table:
    """What would run and why."""
    table = Table(title="plan", title_justify="left")
    for name in ("stage", "key", "", "why"):
        table.add_column(name)
    for stage in planned:
        doing = "run" if stage.runs else "skip"
        table.add_row(stage.name, stage.key[:16], doing, stage.why)
    return table


def outcome_table(ended: list[StageOutcome]) -> Table:
    """How every stage ended, how long it took and what it cost."""
    table = Table(title="workflow", title_justify="left")
    for name in ("stage", "key", "status", "seconds", "CPU h", "GPU h"):
        table.add_column(name)
    for o in ended:
        numbers = (f"{o.seconds:.1f}", f"{o.cpu_hours:.4f}", f"{o.gpu_hours:.4f}")
        status = o.status if o.final else f"{o.status}, not final"
        table.add_row(o.name, o.key[:16], status, *numbers)
    return table


def _log(
    config: WorkflowConfig, wanted: list[Stage], ended: list[StageOutcome], console: Console
) -> bool:
    """A parent run for the graph, a child per stage; whether MLflow has them."""
    uri = client.tracking_uri(config.tracking_uri, config.store)
    try:
        _log_runs(config, uri, wanted, ended)
    except Exception as error:  # the graph ran and its results are stored; tracking can be late
        reason = first_line(error)
        console.print(f"warning: {uri} does not have the workflow ({reason}); run it again later")
        return False
    return True


def _log_runs(
    config: WorkflowConfig, uri: str, wanted: list[Stage], ended: list[StageOutcome]
) -> None:
    server = client.client(uri)
    key = storage.content_key([outcome.key for outcome in ended])
    spec = runs.RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=key,
        name=f"workflow-{key[:8]}",
        tags={"stage": "workflow"},
    )
    with registry.open_run(spec, good=all(o.result is not None for o in ended)) as parent:
        for stage, outcome in zip(graph.sort_by_needs(wanted), ended, strict=True):
            below = replace(
                spec,
                key=storage.content_key([key, outcome.key]),
                name=stage.name,
                params={"key": outcome.key},
                tags={"stage": f"workflow.{stage.kind}", "mlflow.parentRunId": parent},
            )
            with registry.open_run(below, good=outcome.result is not None) as child:
                for name in ("seconds", "cpu_hours", "gpu_hours"):
                    server.log_metric(child, name, getattr(outcome, name), step=0)
                server.set_tag(child, "status", outcome.status)
                if run_id := (outcome.result or {}).get("tracking_run_id"):
                    server.set_tag(child, "training_run_id", run_id)
                if outcome.error:
                    server.set_tag(child, "error", outcome.error)
        runs.log_bytes(server, parent, "workflow.json", _json(wanted, ended))


def _json(wanted: list[Stage], ended: list[StageOutcome]) -> bytes:
    needs = {stage.name: list(stage.needs) for stage in wanted}
    rows = [{**row, "needs": needs[row["name"]]} for row in graph.as_json(ended)]
    return graph.json_bytes(rows)
