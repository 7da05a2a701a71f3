"""What a training leaves on the disk: checkpoints that can be used, models that can be read."""

from pathlib import Path

import pytest
import torch

from pipelines import weights
from pipelines.errors import UserError
from pipelines.pretrain import checkpoint


@pytest.mark.parametrize(("keep", "kept"), [(1, [300]), (2, [250, 300])])
def test_a_damaged_checkpoint_does_not_push_out_good_ones(
    keep: int, kept: list[int], tmp_path: Path
) -> None:
    stage, tensors = str(tmp_path), {"weight": torch.zeros(4)}
    damaged = checkpoint.save(stage, 400, tensors, {})
    Path(damaged, checkpoint.TENSORS).write_bytes(b"cut")
    assert checkpoint.passed_over(stage, None) == ["step-00000400"]
    for step in (200, 250, 300):
        checkpoint.save(stage, step, tensors, {})
        checkpoint.prune(stage, step, keep)
        found = checkpoint.latest(stage)
        assert found is not None and found.step == step
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in kept]


def test_a_process_that_is_late_removes_no_later_checkpoint_that_can_be_used(
    tmp_path: Path,
) -> None:
    stage, tensors = str(tmp_path), {"weight": torch.zeros(4)}
    for step in (300, 200):
        checkpoint.save(stage, step, tensors, {})
        checkpoint.prune(stage, step, 1)
    found = checkpoint.latest(stage)
    assert found is not None and found.step == 300
    assert checkpoint.passed_over(stage, found) == []


@pytest.mark.parametrize("text", [b"", b'{"format_version": 1', b"[]", b"\xff"])
def test_a_model_description_that_is_no_json_object_is_one_message(
    text: bytes, tmp_path: Path
) -> None:
    (tmp_path / weights.WEIGHTS).write_bytes(b"")
    (tmp_path / weights.MODEL).write_bytes(text)
    with pytest.raises(UserError, match=r"model\.json in '.*' is no JSON object"):
        weights.load_model(str(tmp_path))
