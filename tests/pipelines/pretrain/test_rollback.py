"""Updates that are not finite: left out, then back to good weights, then a message with reasons."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import go_on, images, make_task, never

from pipelines.data import stream
from pipelines.models import checkpoint
from pipelines.pretrain.divergence import MAX_ROLLBACKS, DivergenceWatch
from pipelines.pretrain.messages import Diverged, FaultFound, Note
from pipelines.pretrain.summary import describe_divergence


class Fragile(torch.nn.Module):
    """Gives nan for images without any texture."""

    def forward(self, x: Tensor) -> Tensor:
        texture = x.detach()[:, :, 5:50, 5:50].var((2, 3)).sum(1)
        return torch.where(texture.view(-1, 1, 1, 1) < 1e-8, torch.nan, x)


def spoilt(steps: range, shift: Callable[[int], int] = int) -> Callable[[int], Tensor]:
    """Two images per step, of which the second is plain white in some steps."""

    def image_of(step: int) -> Tensor:
        image = images(2, seed=shift(step)).image
        image[1] = 255 if step in steps else image[1]
        return image

    return image_of


def train(
    stage: Path,
    steps: int,
    image_of: Any,
    *,
    deaths: tuple[int, ...] = (),
    stops: tuple[Any, ...] = (None,),
) -> Any:
    """All messages, and the tensors of the last checkpoint."""
    torch.manual_seed(0)
    task = make_task(
        steps, stage_uri=str(stage), checkpoint_every=4, keep_checkpoints=2, validate_every=99
    )
    posted: list[Any] = []
    for until, stop in [*((at, None) for at in deaths), *((steps, stop) for stop in stops)]:
        go_on(task, until, stop, layer=Fragile, image_of=image_of, posted=posted)
    newest = checkpoint.latest(str(stage))
    assert newest is not None
    return posted, newest.tensors(), newest


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_at(step: int) -> Any:
    asked = iter(range(1, 100))
    return SimpleNamespace(
        is_requested=lambda *, at_point: next(asked) == step, enter=lambda phase: None
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("unbroken"), 24, spoilt(range(9, 19)))


def test_after_ten_updates_left_out_it_goes_on_from_the_last_good_weights(
    unbroken: Any, tmp_path: Path
) -> None:
    posted, tensors, newest = unbroken
    assert newest.step == 24 and newest.state["totals"]["skipped"] == 10
    told = [message.text for message in posted if isinstance(message, Note)]
    assert len(told) == 1 and "10 updates in a row up to step 19" in told[0]
    assert "those of step 8 again" in told[0]
    # As if the batches 8 to 18 had not been there.
    nothing = range(0)
    kept = spoilt(nothing, lambda step: step if step < 8 else step + 11)
    _, expected, _ = train(tmp_path / "kept", 13, kept)
    assert_same_weights(tensors, expected)


def test_a_death_before_or_after_changes_no_weight_and_a_stop_does_not_hide_the_good_ones(
    unbroken: Any, tmp_path: Path
) -> None:
    image_of = spoilt(range(9, 19))
    _, killed, last = train(tmp_path / "killed", 24, image_of, deaths=(14, 21))
    assert_same_weights(unbroken[1], killed)
    assert last.state["divergence"]["rollbacks"] == 1
    _, stopped, _ = train(tmp_path / "stopped", 24, image_of, stops=(stop_at(13), never()))
    assert_same_weights(unbroken[1], stopped)


def test_weights_that_fail_again_end_the_run_with_step_layer_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "keys_of", lambda plan, step: [f"{step}/a.jpg", f"{step}/b.jpg"])
    posted, _, newest = train(tmp_path, 40, spoilt(range(9, 40)))
    assert newest.step == 8
    (diverged,) = [message for message in posted if isinstance(message, Diverged)]
    assert diverged == Diverged(step=29, updates=10, rollbacks=1)
    faults = [message for message in posted if isinstance(message, FaultFound)]
    assert faults == [FaultFound(28, 0, "the output of layer generator.1", ("28/b.jpg",))]
    message = describe_divergence(diverged, faults)
    assert "up to step 29, 10 updates in a row were not finite" in message
    assert "gone back to a good checkpoint once. In step 28 (counted from 0), worker 0," in message
    assert "layer generator.1 was not finite first, with the images '28/b.jpg';" in message


def test_it_goes_back_only_so_often() -> None:
    watch = DivergenceWatch(steps=1000)
    for _ in range(MAX_ROLLBACKS):
        assert watch.diverged_after([True] * 10) == 10
        assert watch.may_roll_back()
        watch.rolled_back()
        assert not watch.may_roll_back()  # to the same weights
        other = DivergenceWatch(steps=1000)
        other.resume(watch.state())
        assert not other.may_roll_back()
        assert watch.diverged_after([False]) is None
    assert not watch.may_roll_back()
