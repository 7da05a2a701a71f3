"""What a finished training leaves: the exported model, the logged model, the closing table."""

import importlib.metadata
import math
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ce_model.network_config import ALEXNET, INPAINTING
from ce_model.networks import NetworkConfig, input_side, predicts_images
from pipelines import storage
from pipelines.data.source_names import source_name
from pipelines.models import checkpoint, files
from pipelines.pretrain import probe
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.driver import DriverWatch, is_told
from pipelines.pretrain.messages import Diverged, FaultFound
from pipelines.pretrain.recipe import Export
from pipelines.pretrain.task import Task
from pipelines.store_page.find import Curve, curve_of
from pipelines.store_page.page import about, looks, untrained_name, without_training
from pipelines.tracking import models, runs

CURVE_POINTS = 100
JOINT_COST_DB = 0.5  # PSNR that a joint loss may cost
VALIDATION = ("l1_hole", "l2_hole", "psnr_hole", "psnr_mean_fill", "psnr_visible_mean",
              "psnr_telea", "psnr_untrained", "ssim_hole", "sharpness", "seam",
              "target_error", "target_error_mean", "accuracy", "accuracy_chance", "loss",
              "accuracy_rotation", "accuracy_shift_across", "accuracy_shift_down")  # fmt: skip
SERVED_WITH = (
    "torch", "numpy", "safetensors", "fsspec", "pyarrow", "mlflow",
    "opencv-contrib-python-headless", "scipy", "simplejpeg", "Pillow",
)  # fmt: skip


def export_model(
    config: PretrainConfig,
    task: Task,
    spec: runs.RunSpec,
    found: checkpoint.Checkpoint,
    watch: DriverWatch,
) -> dict[str, Any]:
    """Write the model folder and put together what was measured."""
    export = task.recipe.export
    generator = probe.exported(task, found).generator
    model_uri = storage.join(task.stage_uri, "model")
    last = {
        name: value for record in found.state["history"] for name, value in record["values"].items()
    }
    measured = _validation(last, export)
    info = {
        **task.recipe.learned_from,
        "steps": config.steps,
        "seed": config.seed,
        "key": spec.key,
        "dataset_fingerprint": task.plan.manifest.fingerprint,
        "code": runs.git_commit(),
        "shorter": task.plan.shorter,
        "export": export,
        "validation": measured,
    }
    digest = files.save_model(
        model_uri, generator, task.recipe.network, task.recipe.objective, info
    )
    # A checkpoint of an earlier version knows of rank 0 alone.
    of_ranks = last.get("memory/ranks_peak_bytes", last.get("memory/rank_0_peak_bytes", 0.0))
    totals = found.state["totals"]
    trained_s = max(totals["train_s"], 1e-9)
    return {
        "key": spec.key,
        "preset": config.preset,
        "encoder": task.recipe.network.encoder,
        "strategy": task.recipe.strategy,
        "pretext": task.recipe.network.pretext,
        "target": task.recipe.network.target,
        "layers": task.recipe.network.layers,
        "adversarial": task.recipe.objective.adversarial,
        "start": task.recipe.objective.start,
        "seed": config.seed,
        "dataset": task.plan.uri,
        "dataset_fingerprint": task.plan.manifest.fingerprint,
        "source": task.plan.manifest.source,
        "training_images": task.plan.rows,
        "steps": found.step,
        "batch_size": config.batch_size,
        "num_workers": config.num_workers,
        "images_per_second": totals["steps"] * config.batch_size / trained_s,
        "data_wait_share": totals["wait_s"] / trained_s,
        "train_seconds": totals["train_s"],
        **({"reads": watch.reads._asdict()} if any(watch.reads) else {}),
        "restarts": totals["restarts"],
        "updates_skipped": totals["skipped"],
        "peak_memory_bytes": max(watch.peak_memory_bytes, int(of_ranks)),
        "peak_memory_driver_bytes": watch.peak_memory_bytes,
        "peak_memory_ranks_bytes": int(of_ranks),
        "losses": {name: last[name] for name in last if name.startswith("loss/")},
        "export": export,
        "validation": measured,
        "curve": [list(point) for point in _thinned(curve_of(found.state["history"]))],
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "validation_raw": _validation(last, "raw"),
        "tracking_uri": spec.uri,
        "checkpoint": found.uri,
        "panel": storage.join(task.stage_uri, "panel.png"),
        "model": model_uri,
        "weights_sha256": digest,
    }


def _thinned(curve: Curve) -> Curve:
    """At most twice CURVE_POINTS of the points, evenly spaced, the last among them."""
    every = max(1, len(curve) // CURVE_POINTS)
    return curve[::-1][::every][::-1]


def _validation(last: dict[str, float], export: Export) -> dict[str, float]:
    """The last validation of the weights or of their average."""
    found = {}
    for name in VALIDATION:
        # Methods without training are measured once, beside the raw weights; a run that an
        # earlier version began lacks some.
        of_average = f"validation_ema/{name}" if export == "ema" else ""
        for key in (of_average, f"validation/{name}"):
            if key in last:
                found[name] = last[key]
                break
    return found


def log_trained_model(
    uri: str, run_id: str, summary: dict[str, Any], network: NetworkConfig
) -> str:
    """Log the model of a training to its MLflow run; returns the URI of the logged model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        files.copy_model(summary["model"], str(folder))
        needed = SERVED_WITH if network.encoder == ALEXNET else (*SERVED_WITH, "transformers")
        requirements = [f"{n}=={importlib.metadata.version(n).split('+')[0]}" for n in needed]
        return models.log_model(
            uri,
            run_id,
            folder,
            input_side(network),
            requirements,
            fills=predicts_images(network),
            name=f"{summary['preset']}-{_short(summary)}-{summary['steps']}-steps",
            description=describe_model(summary),
        )


def _short(summary: dict[str, Any]) -> str:
    pretext = summary.get("pretext", INPAINTING)
    return str(summary["strategy"] if pretext == INPAINTING else pretext)


SHOWN_KEYS = 3


def describe_divergence(diverged: Diverged, faults: Sequence[FaultFound]) -> str:
    """Why a run could not go on: the steps, what was not finite first, in which images."""
    again = ""
    if diverged.rollbacks:
        times = "once" if diverged.rollbacks == 1 else f"{diverged.rollbacks} times"
        again = f", though the run had gone back to a good checkpoint {times}"
    found = ""
    for fault in faults:
        shown = ", ".join(repr(key) for key in fault.keys[:SHOWN_KEYS])
        more = f" and {len(fault.keys) - SHOWN_KEYS} more" if len(fault.keys) > SHOWN_KEYS else ""
        found += (
            f". In step {fault.step} (counted from 0), worker {fault.rank}, {fault.where} was not "
            f"finite first, with the images {shown}{more}"
        )
    return (
        f"training diverged: up to step {diverged.step}, {diverged.updates} updates in a row were "
        f"not finite, and none of them was applied{again}{found}; lower --learning-rate, add "
        "--clip-norm 1 or try --precision fp32"
    )


def describe_model(summary: dict[str, Any]) -> str:
    """What a model is and what was measured of it, in two sentences."""
    trained = _trained(summary)
    measured = summary["validation"]
    text = f"{trained} ({source_name(summary.get('source', ''))})."
    if "psnr_hole" in measured:
        others = [f"{what} {value:.2f}" for what, value in without_training(summary).items()]
        beside = f"; {', '.join(others)}" if others else ""
        return f"{text} Holes of validation images: {measured['psnr_hole']:.2f} dB{beside}."
    if "target_error" in measured:
        mean = measured["target_error_mean"]
        return (
            f"{text} Error of the target on validation images: {measured['target_error']:.4f}; the "
            f"mean of all cells {mean:.4f}."
        )
    if "accuracy" in measured:
        return (
            f"{text} Right answers on fixed images: {measured['accuracy']:.1%}; by chance "
            f"{measured['accuracy_chance']:.1%}."
        )
    return text


def describe_budget(about: str, steps: int, batch_size: int, images: int) -> str:
    """A training in one line."""
    return f"{about}, {steps:,} steps of {batch_size} on {images:,} images"


def _trained(summary: dict[str, Any]) -> str:
    steps, batch_size = summary["steps"], summary["batch_size"]
    return describe_budget(about(summary), steps, batch_size, summary["training_images"])


def _describe_memory(summary: dict[str, Any]) -> str:
    if "peak_memory_ranks_bytes" not in summary:  # of an earlier version
        return f"{summary['peak_memory_bytes'] / 1e9:.1f} GB"
    driver, ranks = summary["peak_memory_driver_bytes"], summary["peak_memory_ranks_bytes"]
    of_ranks = f"{ranks / 1e9:.1f} GB in the training processes of all nodes"
    if not driver:  # this command only wrote the model of a training that had ended
        return of_ranks
    return f"{driver / 1e9:.1f} GB in this process and all below it, {of_ranks}"


def _describe_reads(reads: storage.Use) -> str:
    """Of the command that ended the training: an earlier one told its own."""
    return (
        f"{reads.hits:,} reads from the nodes' disks ({reads.cache_bytes / 1e9:.2f} GB), "
        f"{reads.misses:,} from the store ({reads.store_bytes / 1e9:.2f} GB with what was kept)"
    )


def shortfalls(summary: dict[str, Any]) -> list[str]:
    """What needs no training and yet fills the holes better: lines to print.

    The adversarial loss gives PSNR for sharpness.
    """
    measured = summary["validation"]
    reached = measured.get("psnr_hole", math.inf)  # a training of features fills nothing
    found = []
    if reached < measured.get("psnr_visible_mean", reached):
        found.append(
            f"warning: the fillings ({reached:.2f} dB) are worse than the mean colour of each "
            f"image ({measured['psnr_visible_mean']:.2f} dB), which needs no network: train for "
            "more --steps, or lower --learning-rate"
        )
    lost = measured.get("psnr_untrained", reached) - reached
    start = untrained_name(summary)
    if summary.get("adversarial") and 0 < lost <= JOINT_COST_DB:
        found.append(
            f"{lost:.2f} dB below the {start}, as the joint loss gives PSNR for sharpness; "
            "--adversarial 0 does not"
        )
    elif lost > 0:
        found.append(
            f"warning: the fillings ({reached:.2f} dB) are worse than those of the {start} "
            f"({measured['psnr_untrained']:.2f} dB), which need no training: "
            "train for more --steps"
        )
    return found


def _measured_rows(summary: dict[str, Any]) -> dict[str, str]:
    measured, rows = summary["validation"], {}
    if "psnr_hole" in measured:
        rows = {
            "PSNR of the hole": f"{measured['psnr_hole']:.2f} dB",
            "without training": "   ".join(
                f"{what} {value:.2f} dB" for what, value in without_training(summary).items()
            ),
            "L1, L2 of the hole": f"{measured['l1_hole']:.2%}, {measured['l2_hole']:.2%}",
            "looks": looks(measured),
        }
    if "target_error" in measured:
        rows["error of the target"] = (
            f"{measured['target_error']:.4f}   (the mean of all cells "
            f"{measured['target_error_mean']:.4f})"
        )
    if "accuracy" in measured:
        rows["right answers"] = (
            f"{measured['accuracy']:.1%}   (by chance {measured['accuracy_chance']:.1%}), loss "
            f"{measured['loss']:.3f}"
        )
        rows |= {
            f"of {name.removeprefix('accuracy_').replace('_', ' ')}": f"{value:.1%}"
            for name, value in measured.items()
            if name.startswith("accuracy_") and name != "accuracy_chance"
        }
    return rows


def closing_table(summary: dict[str, Any], console: Console) -> None:
    """Print what a training reached, and where it left what it made."""
    table = Table(show_header=False, title="pretraining", title_justify="left")
    measured = summary["validation"]
    losses = summary["losses"]
    rows = {
        "trained": _trained(summary),
        "losses": "  ".join(
            f"{k.removeprefix('loss/')} {v:.4f}"
            for k, v in sorted(losses.items())
            if is_told(k, losses)
        ),
        **_measured_rows(summary),
        "speed": f"{summary['images_per_second']:.0f} images/s, waiting for data "
        f"{summary['data_wait_share']:.1%} of the time",
        "peak memory": _describe_memory(summary),
    }
    if "reads" in summary:
        rows["shards"] = _describe_reads(storage.Use(**summary["reads"]))
    if summary.get("export") == "ema":
        name = next(n for n in ("psnr_hole", "target_error", "accuracy") if n in measured)
        raw = summary["validation_raw"][name]
        rows["weights"] = f"averaged: {name} {measured[name]:#.4g}; the raw ones have {raw:#.4g}"
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for line in shortfalls(summary):
        console.print(line, soft_wrap=True)
    run_id = summary["tracking_run_id"]
    run = "no run yet" if run_id is None else f"run {run_id}"
    for name, place in (
        ("panel", summary["panel"]),
        ("model", summary["model"]),
        ("MLflow", f"{run} of {summary['tracking_uri']}"),
    ):  # below the table, where a long path stays whole
        console.print(f"{name:6}  {place}", soft_wrap=True)
