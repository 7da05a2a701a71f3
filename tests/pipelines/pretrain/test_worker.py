"""What a worker reports: averages, divergence, and the untrained network."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from training_helpers import ALEXNET, PIXELS, go_on, images, make_reporter, make_task, never

from ce_model import training
from ce_model.mask_tensors import apply_symmetry
from ce_model.networks import build_generator
from ce_model.training import Networks, Optimization, estimate_statistics
from pipelines import storage
from pipelines.errors import UserError
from pipelines.models import checkpoint
from pipelines.pretrain import device_feed, validation, worker
from pipelines.pretrain.data_wait import DataWaitClock
from pipelines.pretrain.messages import Diverged
from pipelines.pretrain.reporter import Reporter
from pipelines.pretrain.validator import Validator


def step(loss: float, skipped: bool = False) -> dict[str, torch.Tensor]:
    norm = float("nan") if skipped else 1.0
    values = {"loss/joint": loss, "grad_norm/generator": norm, "nonfinite": float(skipped)}
    return {name: torch.tensor(value) for name, value in values.items()}


def go(reporter: Reporter, skipped: list[bool], log_every: int) -> int | None:
    """The step at which the run stops."""
    for at, skip in enumerate(skipped, start=1):
        reporter.add(step(1.0, skip))
        if at % log_every == 0 and not reporter.log(at, (1e-3, 1e-4)):
            return at
    return None


def test_a_skipped_step_counts_in_no_average() -> None:
    posted: list[Any] = []
    reporter = make_reporter(posted)
    for values in (step(1.0), step(float("inf"), skipped=True), step(3.0)):
        reporter.add(values)
    assert reporter.log(3, (1e-3, 1e-4))
    found = posted[-1].values
    assert found["loss/joint"] == 2.0
    assert found["grad_norm/generator"] == 1.0
    assert found["updates_skipped"] == 1


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_run_diverges_after_ten_skipped_steps_in_a_row(log_every: int) -> None:
    posted: list[Any] = []
    reporter = make_reporter(posted)
    assert go(reporter, [False] * 5 + [True] * 20, log_every) == 15


@pytest.mark.parametrize("log_every", [1, 4])
def test_fewer_skipped_steps_in_a_row_end_no_run(log_every: int) -> None:
    posted: list[Any] = []
    reporter = make_reporter(posted)
    assert go(reporter, ([True] * 9 + [False]) * 2, log_every) is None
    assert not any(isinstance(message, Diverged) for message in posted)
    assert posted[-1].values["updates_skipped"] == 18


@pytest.mark.parametrize(("skipped", "stops"), [([True] * 3, 3), ([True, False, True], None)])
def test_a_short_run_diverges_when_all_its_steps_are_skipped(
    skipped: list[bool], stops: int | None
) -> None:
    assert go(make_reporter([], steps=3), skipped, log_every=1) == stops


@pytest.mark.parametrize(("log_every", "steps"), [(3, [2, 3, 4, 6]), (2, [2, 4, 6])])
def test_a_run_that_goes_on_between_two_points_has_the_curves_of_an_unbroken_one(
    log_every: int, steps: list[int], tmp_path: Path
) -> None:
    curves, totals = [], []
    for deaths in ([], [3, 5]):
        torch.manual_seed(0)
        stage = str(tmp_path / str(len(deaths)))
        task = make_task(6, stage_uri=stage, checkpoint_every=2, log_every=log_every)
        for until in [*deaths, 6]:
            state = go_on(task, until)
        measured = [
            {name: v for name, v in point["values"].items() if name.startswith(("loss", "grad"))}
            | {"step": point["step"]}
            for point in state["history"]
            if "loss/joint" in point["values"]
        ]
        assert [point["step"] for point in measured] == steps
        curves.append(measured)
        totals.append({name: state["totals"][name] for name in ("steps", "skipped")})
    assert curves[0] == curves[1]
    assert totals == [{"steps": 6, "skipped": 0}] * 2


def test_a_batch_in_parts_survives_a_death(tmp_path: Path) -> None:
    found = []
    for deaths in ([], [2]):
        torch.manual_seed(0)
        recipe = replace(make_task(4).recipe, optimization=Optimization(accumulate=2))
        stage = str(tmp_path / str(len(deaths)))
        task = make_task(4, recipe=recipe, stage_uri=stage, checkpoint_every=2)
        for until in [*deaths, 4]:
            go_on(task, until)
        newest = checkpoint.latest(stage)
        assert newest is not None
        found.append(newest.tensors())
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_what_parts_and_compiling_come_to_is_told() -> None:
    parts = replace(make_task(4).recipe, optimization=Optimization(accumulate=2))
    plain, normed = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

    def told(network: torch.nn.Module, **changes: Any) -> list[str]:
        task = make_task(4, **changes)
        return worker.hints(task, Networks(network, None), torch.device("cpu"))

    assert told(plain) == told(normed) == told(plain, recipe=parts) == []
    assert "batch norm sees 1 images at a time" in told(normed, recipe=parts)[0]
    assert "not recorded as a CUDA graph: CUDA graphs are for GPUs" in told(plain, compile=True)[0]
    (short,) = told(plain, profile_steps=2)
    assert "--profile-steps 2: there is no trace of a run of fewer than 12 steps" in short


def test_the_last_step_is_measured_and_saved_whatever_the_periods(tmp_path: Path) -> None:
    state = go_on(make_task(3, stage_uri=str(tmp_path), checkpoint_every=2, validate_every=2), 3)
    assert state["step"] == 3
    points = [
        point["step"] for point in state["history"] if "validation/l1_hole" in point["values"]
    ]
    assert points == [2, 3]


def test_a_batch_of_another_step_is_not_trained() -> None:
    batch = {"step": np.full(2, 5, np.int32)}
    task, reporter = make_task(9), make_reporter([])
    nothing: Any = None
    with pytest.raises(RuntimeError, match="the stream sent batch 5 where 4 belongs"):
        worker.run_steps(
            task, Networks(nothing, None), nothing, iter([batch]), reporter,
            torch.device("cpu"), torch.float32, 4, never(),
        )  # fmt: skip


def test_images_are_flipped_and_holes_are_turned_as_the_stream_drew() -> None:
    drawn = np.random.default_rng(0)
    image = drawn.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    hidden = drawn.random((16, 8, 8)) < 0.3
    batch = {
        "image": image,
        "mask": np.packbits(hidden.reshape(16, -1), axis=1),
        "augment": np.arange(16, dtype=np.uint8),
    }
    images, holes, _ = next(device_feed.feed(iter([batch]), torch.device("cpu")))
    np.testing.assert_array_equal(images[:8], image[:8])
    np.testing.assert_array_equal(images[8:], image[8:, :, ::-1])
    turned = apply_symmetry(torch.from_numpy(hidden), torch.arange(16) % 8)
    assert torch.equal(holes, turned)


def test_dropout_follows_from_seed_step_and_rank() -> None:
    def draw(seed: int, step: int, rank: int) -> tuple[float, ...]:
        worker.seed_dropout(seed, step, rank)
        return tuple(torch.rand(4).tolist())

    with torch.random.fork_rng():
        assert draw(1, 2, 3) == draw(1, 2, 3)
        assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4


@pytest.fixture
def other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rank, whose values are by 2 above those of this one."""
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.add_(tensor + 2))


def test_a_point_of_a_curve_is_the_average_over_the_ranks(other_rank: None) -> None:
    posted: list[Any] = []
    reporter = make_reporter(posted)
    reporter.add(step(3.0))
    assert reporter.log(1, (1e-3, 1e-4))
    assert posted[-1].values["loss/joint"] == 4.0


def test_validation_sees_the_average_of_the_statistics_of_all_ranks(other_rank: None) -> None:
    generator, discriminator = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm1d(2)
    validator = Validator(make_task(9).recipe, torch.float32, images(2), None)
    validator.settle(Networks(generator, discriminator), None)
    for norm, shape in ((generator, 3), (discriminator, 2)):
        assert norm.running_mean.tolist() == [1.0] * shape  # 0 here, 2 there
        assert norm.running_var.tolist() == [2.0] * shape  # 1 here, 3 there


def test_ranks_that_drifted_apart_write_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifted(tensor: torch.Tensor, op: Any) -> None:
        tensor += op == torch.distributed.ReduceOp.MAX

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", drifted)
    networks = Networks(torch.nn.Linear(2, 2), None)
    optimizers = training.make_optimizers(networks, 1e-2, 0.0)
    reporter = make_reporter([], task=make_task(9, stage_uri=str(tmp_path)))
    with pytest.raises(RuntimeError, match="the ranks hold different parameters"):
        reporter.checkpoint(3, networks, optimizers)
    assert list(tmp_path.iterdir()) == []


def test_the_untrained_network_is_measured_without_the_shift_of_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = build_generator(ALEXNET, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(generator.state_dict())
    random = torch.get_rng_state()
    typical = images(4, seed=1)
    posted: list[Any] = []
    measured: dict[str, float] = {}
    measure = validation.measure
    monkeypatch.setattr(
        validation, "measure", lambda *args: measured.update(measure(*args)) or measured
    )
    make_reporter(posted, typical=typical).begin(Networks(generator, None))
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    look = validation.EvalSettings(ALEXNET, PIXELS, torch.float32)
    estimate_statistics(generator, typical.image, typical.hidden, **look._asdict())
    assert measured == measure(generator, images(2), look)
    shown = validation.panel(generator, images(2), look)
    assert (posted[0].images["output"] == shown["output"]).all()


def test_a_processor_without_bf16_is_a_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with pytest.raises(UserError, match="precision is bf16; this cpu device has no bf16"):
        worker.resolve_precision("bf16", torch.device("cpu"))


def test_the_device_is_idle_from_the_end_of_a_step_to_the_next_batch() -> None:
    idle = DataWaitClock(torch.device("cpu"))
    for gap in (0.02, 0.04):
        idle.begin()
        time.sleep(gap)
        idle.end()
        time.sleep(0.1)  # a step
    assert 0.06 <= idle.take() < 0.1
    assert idle.take() == 0


def test_an_average_is_measured_beside_the_weights_and_survives_a_death(tmp_path: Path) -> None:
    found = []
    for deaths in ([], [2]):
        torch.manual_seed(0)
        stage = str(tmp_path / str(len(deaths)))
        recipe = replace(
            make_task(4).recipe,
            optimization=Optimization(ema=0.5, schedule="cosine", warmup_steps=2),
            export="ema",
        )
        task = make_task(4, recipe=recipe, stage_uri=stage, checkpoint_every=2, validate_every=2)
        for until in [*deaths, 4]:
            state = go_on(task, until)
        assert state["export"] == "ema"
        newest = checkpoint.latest(stage)
        assert newest is not None
        found.append(newest.tensors())
        curves = [point["values"] for point in state["history"]]
        measured = [v for v in curves if "validation_ema/l1_hole" in v]
        assert len(measured) == 2
        assert measured[-1]["validation_ema/l1_hole"] != measured[-1]["validation/l1_hole"]
        rates = [v["learning_rate/generator"] for v in curves if "learning_rate/generator" in v]
        assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert {name for name in found[0] if name.startswith("average")} == {
        "average.0.weight", "average.0.bias", "average.updates",
    }  # fmt: skip
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_a_run_that_is_asked_to_stop_saves_its_step_and_resumes_as_if_unbroken(
    tmp_path: Path,
) -> None:
    asked = iter([False, False, True])
    stop = SimpleNamespace(is_requested=lambda *, at_point: next(asked), enter=lambda _: None)
    tensors = []
    for name, stops in (("unbroken", [None]), ("stopped", [stop, None])):
        torch.manual_seed(0)
        task = make_task(5, stage_uri=str(tmp_path / name), checkpoint_every=10)
        for at, one in enumerate(stops):
            assert go_on(task, 5, one)["step"] == (3 if one else 5), at
        newest = checkpoint.latest(task.stage_uri)
        assert newest is not None
        tensors.append(newest.tensors())
    assert [n for n in tensors[0] if not torch.equal(tensors[0][n], tensors[1][n])] == []


@pytest.mark.parametrize(("free", "told"), [(10**12, False), (10_000, True), (None, False)])
def test_a_store_without_room_for_the_checkpoints_is_told_before_the_first_step(
    free: int | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[Any] = []
    mailbox = SimpleNamespace(post=SimpleNamespace(remote=posted.append))
    monkeypatch.setattr(ray, "get", lambda _: None)
    monkeypatch.setattr(storage, "free_bytes", lambda _: free)
    networks = training.Networks(torch.nn.Linear(9, 100), None)  # type: ignore[arg-type]
    task: Any = SimpleNamespace(stage_uri="/store/pretrain/k", keep_checkpoints=2)
    worker.warn_of_space(task, networks, mailbox)
    assert len(posted) == int(told)
    if told:  # 1,000 weights: 3 checkpoints of 12,000 bytes and a model of 4,000
        assert "needs about 0.00 GB: 3 checkpoints" in posted[0].text
