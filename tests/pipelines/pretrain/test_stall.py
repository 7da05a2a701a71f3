"""Training processes that stand still are noticed, ended and restarted."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from training_helpers import signalling_a_worker

from pipelines.data.manifest import read_manifest
from pipelines.errors import UserError
from pipelines.pretrain import stall
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import pretrain_key
from pipelines.pretrain.run import pretrain_model
from pipelines.pretrain.stall import Sign, StallWatch
from pipelines.runtime.mailbox import Failure, Mailbox


class Box:
    """A mailbox in this process, and what was ended and told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box, self.now = Mailbox(), 1000.0
        self.ended: list[Sign] = []
        self.told: list[str] = []
        monkeypatch.setattr(ray, "get", lambda answer: answer)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        remote: Any = SimpleNamespace(**{
            name: SimpleNamespace(remote=getattr(self.box, name))
            for name in ("signs", "forget", "fail")
        })  # fmt: skip
        self.watch = StallWatch(10, remote, self.told.append, lambda s: not self.ended.append(s))

    def passes(self, seconds: float, *signs: Sign) -> None:
        """Signs of life twice a second, and a look each time."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            for sign in signs:
                self.box.sign(sign)
            self.watch.look()


def sign(rank: int, phase: stall.Phase, done: int = 1) -> Sign:
    return Sign(rank, "0123456789", 100 + rank, phase, done)


def test_a_frozen_process_is_ended_not_the_one_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Box(monkeypatch)
    box.passes(1, sign(0, "step"), sign(1, "step"))
    box.passes(12, sign(0, "step"))
    assert [each.rank for each in box.ended] == [1]
    (told,) = box.told
    assert "worker 1 (process 101 on node 01234567) sent no sign of life for 10 s" in told
    assert box.box.failure() == Failure(
        "training worker 1 (process 101 on node 01234567) sent no sign of life for 10 s", False
    )


def test_all_that_hang_in_a_step_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch)
    box.passes(9, sign(0, "step"), sign(1, "step"))
    assert box.ended == []
    box.passes(3, sign(0, "step"), sign(1, "step"))
    assert [each.rank for each in box.ended] == [0, 1]
    assert "stood still in a step for 10 s" in box.told[0]


def test_who_moves_validates_or_waits_for_data_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Box(monkeypatch)
    for done in range(5):
        box.passes(9, sign(0, "step", done), sign(1, "step", done))
    box.passes(30, sign(0, "step", 9), sign(1, "other", 9))
    assert box.told == []
    box.passes(30, sign(0, "step", 10), sign(1, "data", 10))
    assert len(box.told) == 1 and "has waited for data for more than 10 s" in box.told[0]
    box.passes(1, sign(0, "step", 11), sign(1, "step", 11))
    box.passes(30, sign(0, "step", 12), sign(1, "data", 12))
    assert len(box.told) == 2
    assert box.ended == []


def test_a_process_that_has_ended_is_forgotten_and_nobody_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Box(monkeypatch)
    box.watch = StallWatch(10, box.watch._mailbox, box.told.append, lambda _: False)
    box.passes(1, sign(0, "step"))
    box.passes(30)
    assert box.told == [] and box.box.failure() is None and box.box.signs() == []


def test_only_a_training_process_is_killed() -> None:
    assert not stall._kill(os.getpid())
    assert not stall._kill(2**22 + 1)  # above the largest number of a process


@pytest.mark.slow
@pytest.mark.parametrize("max_failures", [1, 0])
def test_a_frozen_rank_of_two_is_restarted_or_fails_with_one_message(
    max_failures: int, dataset_uri: str, tmp_path: Path
) -> None:
    config = PretrainConfig(
        store=str(tmp_path), bottleneck=8, steps=24, batch_size=4, checkpoint_every=4,
        log_every=2, validation_images=4, threads_per_worker=1, num_workers=2,
        adversarial=0.0, stall_timeout_s=8, max_failures=max_failures,
    )  # fmt: skip
    stage = tmp_path / "pretrain" / pretrain_key(config, read_manifest(dataset_uri))[:16]
    with signalling_a_worker(stage, 4, signal.SIGSTOP) as frozen:
        if max_failures:
            assert pretrain_model(config, dataset_uri)["restarts"] == 1
        else:
            with pytest.raises(UserError, match="sent no sign of life for 8 s"):
                pretrain_model(config, dataset_uri)
            assert time.monotonic() - frozen[0] < 90
    assert frozen
