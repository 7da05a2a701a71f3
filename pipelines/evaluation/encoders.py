"""What is measured: trained models by any name they go by, and encoders that were never trained.

`--model` takes a model folder, the folder of a pretraining stage or checkpoint, the id of an MLflow
run, a registered model (models:/name@alias or models:/name/3), or one of the baselines `random`,
`random-kmeans`, `autoencoder`, `supervised`. `label=REF` names the row of the tables; references
with one label are repetitions (other pretraining seeds) of one row.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ce_model import training
from ce_model.hierarchy import Backbone
from ce_model.network_config import ALEXNET
from ce_model.networks import ContextEncoder, predicts_images
from ce_model.training import Precision
from ce_model.transfer import initialisation
from pipelines.errors import UserError
from pipelines.evaluation.data.images import pick_evenly
from pipelines.models import files
from pipelines.models.backbones import build_network
from pipelines.models.encoder_names import require_encoder
from pipelines.models.resolve import ModelRef, resolve_named

KMEANS_IMAGES = 64


WITHOUT_MAPS = "inpaint"  # the preset whose last features are no map of the image
CONVOLUTIONAL = ("detection", "segmentation")  # tasks whose heads stand on such a map


def require_distinct(given: Mapping[str, ModelRef | None]) -> None:
    """Refuse one name for different models, unless all have it as a label: repetitions of a row.

    Args:
        given: the models by reference; None for what has to be trained first.
    """
    rows: dict[str, dict[str, str]] = {}
    for ref, subject in given.items():
        name, rest = resolve_named(ref)
        rows.setdefault(name, {})[ref] = rest if subject is None else subject.identity
    for name, refs in rows.items():
        labelled = all(ref.startswith(f"{name}=") for ref in refs)
        if len(set(refs.values())) > 1 and not labelled:
            raise UserError(
                f"model has {' and '.join(refs)}, different models that would all be the row "
                f"'{name}'; label them: --model a=REF b=REF (one label for all makes them "
                "repetitions of one row)"
            )


def network_of(subject: ModelRef, seed: int) -> ContextEncoder:
    """The network with its weights, as trained or as drawn."""
    if subject.uri:
        return files.load_model(subject.uri).generator
    return build_network(subject.network, generator=torch.Generator().manual_seed(seed))


def encoder_of(
    subject: ModelRef, seed: int, batches: Iterable[Tensor], *, calibrated: bool = True
) -> nn.Sequential | Backbone:
    """The encoder with its batch norm calibrated on these images, or as trained, folded away.

    `random-kmeans` draws its filters from the same images.
    """
    encoder = network_of(subject, seed).encoder
    kept = list(batches)
    if subject.kind == "random-kmeans":
        images = torch.cat(kept)
        images = images[pick_evenly(len(images), KMEANS_IMAGES)]
        assert isinstance(encoder, nn.Sequential)  # see `require_network`
        folded = initialisation.fold(encoder)
        layers = [m for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        initialisation.initialise(
            layers,
            lambda: folded(images),
            filters="kmeans",
            generator=torch.Generator().manual_seed(seed),
        )
        return folded
    if calibrated:
        initialisation.calibrate(encoder, kept)
    return initialisation.fold(encoder)


def device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(requested: Precision) -> torch.dtype:
    """What this process computes in; what its processor lacks is the user's to fix."""
    try:
        return training.resolve_precision(requested, device())
    except ValueError as error:
        raise UserError(
            f"{error} (fp32 where the machines of a cluster differ: auto is what one of them "
            "computes in)"
        ) from None


def require_network(subject: ModelRef, task: str, side: int | None = None) -> None:
    """Refuse an encoder that a task, or a probe at a side of its own, cannot use."""
    require_encoder(subject.network.encoder)
    if subject.kind == "random-kmeans" and subject.network.encoder != ALEXNET:
        raise UserError(
            f"model is 'random-kmeans' with network.encoder {subject.network.encoder}; filters by "
            f"k-means are drawn for {ALEXNET} alone: leave this row out"
        )
    if task == "inpainting" and not predicts_images(subject.network):
        raise UserError(
            f"task 'inpainting' needs a model that fills holes; '{subject.name}' is of preset "
            f"{subject.network.preset}, which learns features alone: leave the task out, as in "
            "--tasks linear knn"
        )
    if subject.network.preset != WITHOUT_MAPS or (task not in CONVOLUTIONAL and side is None):
        return
    what = task if side is None else f"{task} at frozen.side {side}"
    raise UserError(
        f"task '{what}' needs an encoder of preset alexnet, features or unet, whose features are a "
        f"map of the image; '{subject.name}' is of preset {subject.network.preset}: measure "
        "another one, or leave this out"
    )
