"""A run seen from outside: errors on the validation images and the panel, at every look alike."""

import copy
from typing import Any

import torch

from ce_model import training
from ce_model.training import Networks, WeightAverage
from pipelines.pretrain import validation
from pipelines.pretrain.ddp import share_buffers
from pipelines.pretrain.recipe import Recipe
from pipelines.pretrain.validation import FixedImages


class Validator:
    """Measures the weights, and beside them their moving average where there is one."""

    def __init__(
        self, recipe: Recipe, dtype: torch.dtype, images: FixedImages, typical: FixedImages | None
    ) -> None:
        """Look with these images.

        Args:
            recipe: network, loss and which weights are exported.
            dtype: precision of the forward pass.
            images: this rank's validation images.
            typical: training images that give batch norm its statistics again, without dropout;
                None keeps those of training.
        """
        self._look = validation.EvalSettings(recipe.network, recipe.objective, dtype)
        self._export = recipe.export
        self._images, self._typical = images, typical

    def settle(self, networks: Networks, average: WeightAverage | None) -> None:
        """Make the running statistics fit for evaluation, and equal on all ranks."""
        if self._typical is not None:
            averaged = [average.module] if average is not None else []
            for generator in (networks.generator, *averaged):
                training.estimate_statistics(
                    generator, self._typical.image, self._typical.hidden, **self._look._asdict()
                )
        share_buffers(networks)
        if average is not None:
            share_buffers(Networks(average.module, None))

    def settled_copy(self, networks: Networks) -> Networks:
        """The generator as `settle` would leave it; training keeps the statistics that it has."""
        if self._typical is None:
            return networks
        alone = Networks(copy.deepcopy(networks.generator), None)
        self.settle(alone, None)
        return alone

    def measure(self, generator: torch.nn.Module) -> dict[str, float]:
        """Errors in the hole, as `validation.measure`."""
        return validation.measure(training.unwrap(generator), self._images, self._look)

    def measure_classical(self) -> dict[str, float]:
        """What needs no training, on the same pixels."""
        return validation.measure_classical(self._images, self._look)

    def measure_all(self, networks: Networks, average: WeightAverage | None) -> dict[str, float]:
        """Points of the curves: `validation/...` of the weights, `validation_ema/...` averaged."""
        point = {f"validation/{k}": v for k, v in self.measure(networks.generator).items()}
        if average is not None:
            point |= {f"validation_ema/{k}": v for k, v in self.measure(average.module).items()}
        return point

    def panel(self, networks: Networks, average: WeightAverage | None) -> dict[str, Any] | None:
        """Images for the panel, filled by the weights that are exported; None without images."""
        if not len(self._images.image):
            return None
        averaged = average is not None and self._export == "ema"
        generator = average.module if average is not None and averaged else networks.generator
        return validation.panel(training.unwrap(generator), self._images, self._look)
