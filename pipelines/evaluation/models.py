"""What is measured: trained models by any name they go by, and encoders that were never trained.

`--model` takes a model folder, the folder of a pretraining stage or checkpoint, the id of an MLflow
run, a registered model (models:/name@alias or models:/name/3), or one of the baselines `random`,
`random-kmeans`, `autoencoder`, `supervised`. `label=REF` names the row of the tables; references
with one label are repetitions (other pretraining seeds) of one row.
"""

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
import torch
from torch import Tensor, nn

from ce_model import rescaling, training
from ce_model.networks import ContextEncoder, NetworkConfig, build_generator
from ce_model.training import Objective, Precision
from pipelines import storage, tracking, weights
from pipelines.errors import UserError
from pipelines.evaluation.pictures import spread
from pipelines.progress import plain_console

Kind = Literal["model", "random", "random-kmeans", "autoencoder", "supervised"]
BASELINES = get_args(Kind)[1:]
REFERENCES = "a model folder, a pretraining stage, an MLflow run id or models:/name@alias"
RUN_ID = re.compile(r"[0-9a-f]{32}")
KMEANS_PICTURES = 64
CONVOLUTIONAL = ("detection", "segmentation")  # tasks whose heads stand on conv5 and pool5
CHECKPOINT_STATE, CHECKPOINT_TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model to measure."""

    name: str
    """Row of the tables."""
    kind: Kind
    uri: str
    """Model folder; empty where there is nothing on disk."""
    sha256: str
    """Of the weights; empty where each seed draws its own."""
    identity: str
    """Content key of weights, network and objective; part of every key."""
    network: NetworkConfig
    run_id: str | None = None
    """MLflow run that trained it."""


def named(ref: str) -> tuple[str, str]:
    """Label and reference of a `--model` value."""
    label, equals, rest = ref.partition("=")
    if equals and not re.search(r"[/:]", label):
        return label, rest
    return (ref if ref in BASELINES or RUN_ID.fullmatch(ref) else _short(ref)), ref


def _short(ref: str) -> str:
    """A model folder is called after its stage."""
    parts = ref.rstrip("/").split("/")
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def require_distinct(given: Mapping[str, Subject | None]) -> None:
    """Refuse one name for different models, unless all have it as a label: repetitions of a row.

    Args:
        given: the models by reference; None for what has to be trained first.
    """
    rows: dict[str, dict[str, str]] = {}
    for ref, subject in given.items():
        name, rest = named(ref)
        rows.setdefault(name, {})[ref] = rest if subject is None else subject.identity
    for name, refs in rows.items():
        labelled = all(ref.startswith(f"{name}=") for ref in refs)
        if len(set(refs.values())) > 1 and not labelled:
            raise UserError(
                f"model has {' and '.join(refs)}, different models that would all be the row "
                f"'{name}'; label them: --model a=REF b=REF (one label for all makes them "
                "repetitions of one row)"
            )


def untrained(name: str, kind: Kind, network: NetworkConfig) -> Subject:
    """Random weights of a network; the seed of the measurement draws them."""
    identity = storage.content_key([kind, asdict(network)])
    return Subject(name=name, kind=kind, uri="", sha256="", identity=identity, network=network)


def trained(name: str, uri: str, *, kind: Kind = "model", run_id: str | None = None) -> Subject:
    """A model folder.

    Raises:
        UserError: it is not one.
    """
    try:
        description = storage.read_json(storage.join(uri, weights.MODEL))
    except FileNotFoundError:
        raise UserError(
            f"model is '{uri}', where there is no {weights.MODEL}; it must be {REFERENCES}, or, to "
            f"be measured, one of {', '.join(BASELINES)}"
        ) from None
    digest = description["info"]["weights_sha256"]
    return Subject(
        name=name,
        kind=kind,
        uri=uri,
        sha256=digest,
        identity=storage.content_key([digest, description["network"], description["objective"]]),
        network=NetworkConfig(**description["network"]),
        run_id=run_id,
    )


def resolve(ref: str, *, store: str, tracking_uri: str) -> Subject:
    """The trained model that a reference names; registered ones are copied into the store.

    Raises:
        UserError: it names none.
    """
    name, ref = named(ref)
    if ref in BASELINES:
        raise UserError(
            f"model is '{ref}', which only jobs/evaluate.py knows; here it must be {REFERENCES}"
        )
    if RUN_ID.fullmatch(ref):
        folder = tracking.run_model(tracking_uri, ref)
        return trained(name, folder, run_id=ref)
    if ref.startswith("models:/"):
        with tempfile.TemporaryDirectory() as temporary:
            run_id = tracking.download_model(tracking_uri, ref, Path(temporary))
            return trained(name, _keep(Path(temporary), store), run_id=run_id)
    if storage.exists(storage.join(ref, CHECKPOINT_STATE)):
        with tempfile.TemporaryDirectory() as temporary:
            _from_checkpoint(ref, temporary)
            return trained(name, _keep(Path(temporary), store))
    found = trained(name, weights.folder_of(ref))
    try:
        return replace(found, run_id=run_of(found.uri, tracking_uri))
    except Exception as error:
        if not tracking.may_pass(error):
            raise
        plain_console().print(
            f"warning: MLflow did not answer, so the run of '{found.uri}' is not known "
            f"({tracking.described(tracking_uri, error)})",
            soft_wrap=True,
        )
        return found


def run_of(uri: str, tracking_uri: str) -> str | None:
    """The MLflow run of the training that wrote a model folder; None when there is none."""
    key = storage.read_json(storage.join(uri, weights.MODEL))["info"].get("key")
    return tracking.run_of_key(tracking_uri, key)


def _from_checkpoint(uri: str, folder: str) -> None:
    """The generator of a training checkpoint as a model folder."""
    state = storage.read_json(storage.join(uri, CHECKPOINT_STATE))
    data = storage.read_bytes(storage.join(uri, CHECKPOINT_TENSORS))
    if storage.sha256_of_bytes(data) != state["sha256"]:
        raise UserError(f"checkpoint '{uri}' is not what it was when it was written; take another")
    if "network" not in state:
        raise UserError(
            f"checkpoint '{uri}' does not say of what network it is; measure the model folder of "
            "its pretraining stage instead"
        )
    prefix = "generator."
    tensors = {
        key.removeprefix(prefix): value
        for key, value in safetensors.torch.load(data).items()
        if key.startswith(prefix)
    }
    network = NetworkConfig(**state["network"])
    objective = Objective(**{**state["objective"], "fill": tuple(state["objective"]["fill"])})
    generator = build_generator(network)
    weights.load_strictly(generator, tensors, uri)
    weights.save_model(folder, generator, network, objective, {"steps": state["step"]})


def _keep(folder: Path, store: str) -> str:
    """Copy a downloaded model to where every node can read it."""
    found = trained("", str(folder))
    kept = storage.join(storage.absolute(store), "evaluate", "models", found.sha256[:16])
    weights.copy_model(str(folder), kept)
    return kept


def network_of(subject: Subject, seed: int) -> ContextEncoder:
    """The network with its weights, as trained or as drawn."""
    if subject.uri:
        return weights.load_model(subject.uri).generator
    return build_generator(subject.network, generator=torch.Generator().manual_seed(seed))


def encoder_of(
    subject: Subject, seed: int, batches: Iterable[Tensor], *, calibrated: bool = True
) -> nn.Sequential:
    """The encoder with its batch norm calibrated on these pictures, or as trained, folded away.

    `random-kmeans` draws its filters from the same pictures.
    """
    encoder = network_of(subject, seed).encoder
    kept = list(batches)
    if subject.kind == "random-kmeans":
        pictures = torch.cat(kept)
        pictures = pictures[spread(len(pictures), KMEANS_PICTURES)]
        folded = rescaling.fold(encoder)
        layers = [m for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        rescaling.initialise(
            layers,
            lambda: folded(pictures),
            filters="kmeans",
            generator=torch.Generator().manual_seed(seed),
        )
        return folded
    if calibrated:
        rescaling.calibrate(encoder, kept)
    return rescaling.fold(encoder)


def device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(requested: Precision) -> torch.dtype:
    """What this process computes in; what its processor lacks is the user's to mend."""
    try:
        return training.resolve_precision(requested, device())
    except ValueError as error:
        raise UserError(
            f"{error} (fp32 where the machines of a cluster differ: auto is what one of them "
            "computes in)"
        ) from None


def require_network(subject: Subject, task: str, side: int | None = None) -> None:
    """Refuse an encoder that a task, or a probe at a side of its own, cannot use."""
    if subject.network.preset == "alexnet" or (task not in CONVOLUTIONAL and side is None):
        return
    what = task if side is None else f"{task} at frozen.side {side}"
    raise UserError(
        f"task '{what}' needs an encoder of preset alexnet, with its conv5 and pool5; "
        f"'{subject.name}' is of preset {subject.network.preset}: measure one of preset alexnet, "
        "or leave this out"
    )
