"""A registry with runs, as training and evaluation leave them."""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective
from pipelines.models.files import save_model
from pipelines.promotion.gates import Gates
from pipelines.promotion.run import Decision, promote
from pipelines.tracking import client, models, registry, runs

NETWORK = NetworkConfig(preset="inpaint", output="center", bottleneck=8)


PSNR = "inpainting/central/hole/128/PSNR"


GATES = Gates(
    required=("inpainting",), min_seeds=2, thresholds={PSNR: {"min": 12.0}}, margins={PSNR: 0.3}
)


@dataclass(frozen=True)
class Home:
    """A tracking server, a store, and one logged model that the tests copy."""

    uri: str
    store: Path
    folder: Path
    sha256: str


def make_home(uri: str, store: Path) -> Home:
    folder = store / "model"
    generator = build_generator(NETWORK, generator=torch.Generator().manual_seed(0))
    sha256 = save_model(str(folder), generator, NETWORK, Objective(), {"seed": 0})
    return Home(uri, store, folder, sha256)


def log_run(
    home: Home,
    arm: str,
    seed: int,
    psnr: float | None,
    *,
    tags: dict[str, str] | None = None,
    status: str = "FINISHED",
    evaluated: str | None = None,
) -> str:
    """A pretraining run as jobs/pretrain.py and jobs/evaluate.py leave it."""
    spec = runs.RunSpec(
        uri=home.uri, store=str(home.store), experiment="promotion", key=f"{arm}/{seed}",
        name=f"{arm}-{seed}", params={"seed": seed, "steps": 10, "preset": "inpaint"},
        tags={"arm": arm, "dataset_fingerprint": "f" * 64, **(tags or {})},
    )  # fmt: skip
    run_id = runs.ensure_run(spec)
    server = client.client(home.uri)
    server.set_tag(run_id, runs.COMMIT_TAG, "c" * 40)
    folder = home.store / f"model-{run_id}"
    shutil.copytree(home.folder, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, about type hints and deprecations
        source = models.log_model(
            home.uri, run_id, folder, 128, ["torch"], name=f"{arm}: small", description=f"Of {arm}."
        )
    summary = {"model_uri": source, "weights_sha256": home.sha256, "steps": 10, "restarts": 2,
               "updates_skipped": 0, "dataset": "gone"}  # fmt: skip
    runs.log_bytes(server, run_id, "summary.json", json.dumps(summary).encode())
    if psnr is not None:
        log_report(home, run_id, psnr, evaluated or home.sha256)
    server.set_terminated(run_id, status)
    return run_id


def log_report(home: Home, run_id: str, psnr: float, sha256: str, images: int = 100) -> None:
    score = {"mean": psnr, "std": None, "values": [psnr]}
    row = {"model": "m", "method": "this model", "holes": "central", "region": "hole",
           "hidden": "any", "side": "128", "PSNR": score}  # fmt: skip
    section = {"task": "inpainting", "data": "store/prepare/d", "rows": [row],
               "notes": {"n": {"settings": {"pictures": images}}}}  # fmt: skip
    report = {"seeds": [0], "precision": "fp32", "sections": [section],
              "models": [{"name": "m", "sha256": sha256, "run_id": run_id}]}  # fmt: skip
    data = json.dumps(report).encode()
    runs.log_bytes(client.client(home.uri), run_id, "evaluation/x/report.json", data)


def ask(home: Home, run_id: str, name: str, gates: Gates = GATES) -> Decision:
    return promote(home.uri, run_id, name, gates, str(home.store))


def aliases(home: Home, name: str) -> dict[str, str]:
    found = {a: registry.by_alias(home.uri, name, a) for a in ("candidate", "champion", "previous")}
    return {alias: version.version for alias, version in found.items() if version}
