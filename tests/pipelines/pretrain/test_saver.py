"""Checkpoints beside the training: it does not wait, loses no error, and keeps the best."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.models import checkpoint
from pipelines.pretrain.saver import CheckpointSaver

TENSORS = {"weight": torch.zeros(4)}


def test_training_does_not_wait_for_a_write_but_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.save

    def slowly(*args: Any) -> str:
        time.sleep(0.5)
        return write(*args)

    monkeypatch.setattr(checkpoint, "save", slowly)
    saver = CheckpointSaver(str(tmp_path), 2, 0)
    began = time.perf_counter()
    saver.save(1, TENSORS, {})
    assert time.perf_counter() - began < 0.4
    saver.save(2, TENSORS, {})
    assert time.perf_counter() - began >= 0.5
    saver.wait()
    assert saver.last_write_s is not None and saver.last_write_s >= 0.5
    newest = checkpoint.latest(str(tmp_path))
    assert newest is not None and newest.step == 2


def test_a_write_that_fails_is_an_error_of_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    saver = CheckpointSaver(str(tmp_path), 2, 0)
    saver.save(1, TENSORS, {})
    saver.wait()
    monkeypatch.setattr(checkpoint, "save", fail)
    saver.save(2, TENSORS, {})
    with pytest.raises(OSError, match="the disk is full"):
        saver.save(3, TENSORS, {})
    newest = checkpoint.latest(str(tmp_path))
    assert newest is not None and newest.step == 1


@pytest.mark.parametrize(
    ("best", "kept"), [(0, [40, 50]), (1, [20, 40, 50]), (9, [10, 20, 40, 50])]
)
def test_the_newest_and_the_best_are_kept(best: int, kept: list[int], tmp_path: Path) -> None:
    scores: dict[int, float | None] = {10: 11.0, 20: 14.0, 30: None, 40: 9.0, 50: 12.0}
    if best == 9:
        scores.pop(30)
    for step, score in scores.items():
        checkpoint.save(str(tmp_path), step, TENSORS, {"score": score})
        checkpoint.prune(str(tmp_path), step, 2, best)
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in kept]
