"""One cell of a sweep: an arm with a seed, trained and measured as stages of a graph."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ce_model.network_config import INPAINTING, Preset, Pretext
from pipelines.ablation.config import AblateConfig, Cell, pretraining
from pipelines.data.manifest import read_manifest
from pipelines.evaluation import plan
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import KEY_VERSION, EvaluateConfig
from pipelines.models import checkpoint, resolve
from pipelines.models.resolve import ModelRef
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import pretrain_key, stage_uri
from pipelines.pretrain.recipe import measured_in, resolve_recipe
from pipelines.pretrain.run import pretrain_model
from pipelines.tracking.scores import scores_of
from pipelines.workflow import graph, stages
from pipelines.workflow.graph import Stage, StageOutcome


def curve_of(preset: Preset, pretext: Pretext) -> str:
    """The validation curve that a report shows."""
    if pretext != INPAINTING:
        return "validation/accuracy"
    return "validation/target_error" if preset == "features" else "validation/psnr_hole"


def failures(found: dict[str, Any]) -> list[str]:
    """Cells without a result, with the reason."""
    return [
        f"{cell['arm']} seed {cell['seed']}: {cell['error']}"
        for cell in found["cells"]
        if cell["status"] == "failed"
    ]


def model_of_cell(config: AblateConfig, cell: Cell) -> ModelRef:
    """What a cell will be measured as, before it is trained."""
    return resolve.untrained_ref(
        str(cell.arm), "random", resolve_recipe(pretraining(config, cell)).network
    )


def cell_stages(config: AblateConfig, cell: Cell, data: str) -> list[Stage]:
    """Training and evaluation of a cell."""
    training = pretraining(config, cell)
    key = pretrain_key(training, read_manifest(data))
    measured = evaluation_config(config, cell, data)
    return [
        Stage(
            name=f"train {cell}",
            kind="pretrain",
            run=partial(train, config=training, data=data),
            settings={"key": key},
            workers=config.pretrain.workers.most,
        ),
        Stage(
            name=f"measure {cell}",
            kind="evaluate",
            run=partial(measure, config=measured, trained=f"train {cell}"),
            settings=evaluation_settings_in_key(measured),
            needs=(f"train {cell}",),
        ),
    ]


def evaluation_settings_in_key(config: EvaluateConfig) -> dict[str, Any]:
    """What of the evaluation's settings and data belongs in a cell's key."""
    layouts = plan.layouts_of(config)
    return {
        "version": KEY_VERSION,
        "precision": config.precision,
        **{
            task: {
                "settings": TASKS[task].settings_of(config),
                "data": [
                    TASKS[task].fingerprint(uri, layouts[uri], config)
                    for uri in plan.data_for(task, layouts)
                ],
            }
            for task in config.tasks
        },
    }


def _settings_groups() -> tuple[str, ...]:
    return ("inpainting", "frozen", "finetune", "retrieval")


def evaluation_config(config: AblateConfig, cell: Cell, data: str) -> EvaluateConfig:
    """How a cell is evaluated."""
    return EvaluateConfig(
        model=(str(cell.arm),),  # the reference is known once the cell is trained
        data=(data, *config.data),
        tasks=config.tasks,
        seeds=(cell.seed,),
        store=config.store,
        precision=config.precision or measured_in(config.pretrain),
        tracking_uri=config.tracking_uri,
        **{name: getattr(config, name) for name in _settings_groups()},
    )


def train(inputs: Mapping[str, Any], *, config: PretrainConfig, data: str) -> dict[str, Any]:
    """Stage: pretrain one cell; the summary, final when it is committed, and the curve."""
    summary = pretrain_model(config, data)
    found = checkpoint.latest(stage_uri(config.store, summary["key"]))
    history = found.state["history"] if found else []
    name = curve_of(config.preset, config.pretext)
    curve = [[r["step"], r["values"][name]] for r in history if name in r["values"]]
    return {**summary, "curve": curve}


def measure(inputs: Mapping[str, Any], *, config: EvaluateConfig, trained: str) -> dict[str, Any]:
    """Stage: evaluate one cell; its scores by name."""
    found = stages.evaluate(config, config.model[0], inputs[trained])
    scores = scores_of([found], inputs[trained]["weights_sha256"]).values
    return {"scores": scores, "delivered": graph.is_delivered(found)}


def cell_result(cell: Cell, outcomes: Mapping[str, StageOutcome]) -> dict[str, Any]:
    """What the report keeps of a cell."""
    trained, measured = outcomes[f"train {cell}"], outcomes[f"measure {cell}"]
    summary = trained.result or {}
    wanted = (
        "curve",
        "validation",
        "panel",
        "tracking_run_id",
        "model",
        "weights_sha256",
        "restarts",
        "train_seconds",
    )
    return {
        "arm": str(cell.arm),
        "strategy": cell.arm.strategy,
        "adversarial": cell.arm.adversarial,
        "target": cell.arm.target,
        "layers": cell.arm.layers,
        "pretext": cell.arm.pretext,
        "seed": cell.seed,
        "steps": cell.steps,
        "status": "failed" if measured.result is None else "done",
        "error": trained.error or measured.error,
        "scores": (measured.result or {}).get("scores", {}),
        "seconds": trained.seconds + measured.seconds,
        "cpu_hours": trained.cpu_hours + measured.cpu_hours,
        "gpu_hours": trained.gpu_hours + measured.gpu_hours,
        **{name: summary.get(name) for name in wanted},
    }
