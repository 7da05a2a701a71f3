"""A longer training that continues a finished shorter one, where both are the same up to there."""

from dataclasses import replace
from typing import Any, NamedTuple

from ce_model.training import rate_factor
from pipelines import storage
from pipelines.data.manifest import Manifest
from pipelines.models import checkpoint
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import keys_of_all_versions
from pipelines.pretrain.recipe import Export, Recipe, resolve_recipe


class Finished(NamedTuple):
    """A finished training with the same settings but for its steps or its export."""

    stage: str
    steps: int
    is_start: bool
    """Whether the wanted training goes through its last state."""


def find_finished(
    config: PretrainConfig, recipe: Recipe, manifest: Manifest, home: str
) -> Finished | None:
    """The longest finished training that the wanted one begins like; None where there is none.

    Args:
        config: the wanted training.
        recipe: what it comes to.
        manifest: its dataset.
        home: folder of all pretraining stages of the store.
    """
    found = []
    for name in storage.children(home):
        stage = storage.join(home, name)
        try:
            summary = storage.read_json(storage.join(stage, "commit.json"))
        except (FileNotFoundError, NotADirectoryError):
            continue  # not finished
        steps = summary["steps"]
        if steps > config.steps or summary["preset"] != config.preset:
            continue
        shorter = _with_steps(config, steps)
        if shorter is not None and summary["key"] in _keys(shorter, manifest):
            alike = _same_rates(resolve_recipe(shorter), steps, recipe, config.steps)
            found.append(Finished(stage, steps, alike))
    return max(found, key=lambda one: (one.is_start, one.steps), default=None)


def start_from(finished: Finished, stage: str) -> None:
    """Make the last checkpoint of a finished training the first of a longer one."""
    last = checkpoint.at_step(finished.stage, finished.steps)
    state: dict[str, Any] = {k: v for k, v in last.state.items() if k not in ("sha256", "bytes")}
    checkpoint.save(stage, finished.steps, last.tensors(), {**state, "continues": finished.stage})


def _with_steps(config: PretrainConfig, steps: int) -> PretrainConfig | None:
    try:
        return replace(config, steps=steps)
    except ValueError:  # a warm-up or a milestone lies beyond those steps
        return None


def _keys(config: PretrainConfig, manifest: Manifest) -> set[str]:
    """Of a training, whichever of its weights are exported."""
    averaged = resolve_recipe(config).optimization.ema > 0
    exports: tuple[Export | None, ...] = ("raw", "ema") if averaged else (None,)
    wanted = [replace(config, export=export) for export in exports]
    return {key for one in wanted for key in keys_of_all_versions(one, manifest)}


def _same_rates(shorter: Recipe, steps: int, longer: Recipe, all_steps: int) -> bool:
    return all(
        rate_factor(shorter.optimization, step, steps)
        == rate_factor(longer.optimization, step, all_steps)
        for step in range(steps)
    )
