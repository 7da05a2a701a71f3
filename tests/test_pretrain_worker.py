"""What a worker reports: averages, divergence, and the untrained network."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Networks, Objective, estimate_statistics
from pipelines.errors import UserError
from pipelines.pretrain import validation, worker
from pipelines.pretrain.validation import Pictures

ALEXNET = NetworkConfig(preset="alexnet", output="full")
PIXELS = Objective(adversarial=0.0, overlap=0)


def pictures(count: int, seed: int = 0) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 227, 227, 3), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(count, 227, 227, dtype=torch.bool)
    hidden[:, 60:120, 60:120] = True
    return Pictures(image, hidden)


def make_reporter(
    posted: list[dict[str, Any]], steps: int = 100, typical: Pictures | None = None
) -> worker.Reporter:
    task = worker.Task(
        plan=SimpleNamespace(steps=steps, batch_size=2),  # type: ignore[arg-type]
        stage_uri="",
        network=ALEXNET,
        objective=PIXELS,
        learning_rates=(1e-3, 1e-4),
        precision="fp32",
        compile=False,
        threads=1,
        checkpoint_every=10,
        keep_checkpoints=1,
        log_every=1,
        validate_every=10,
        validation_images=2,
    )
    mailbox = SimpleNamespace(post=SimpleNamespace(remote=posted.append))
    return worker.Reporter(task, mailbox, 0, 1, torch.float32, pictures(2), typical)


def step(loss: float, skipped: bool = False) -> dict[str, torch.Tensor]:
    norm = float("nan") if skipped else 1.0
    values = {"loss/joint": loss, "grad_norm/generator": norm, "nonfinite": float(skipped)}
    return {name: torch.tensor(value) for name, value in values.items()}


def go(reporter: worker.Reporter, skipped: list[bool], log_every: int) -> int | None:
    """The step at which the run stops."""
    for at, skip in enumerate(skipped, start=1):
        reporter.add(step(1.0, skip), wait_s=0.0)
        if at % log_every == 0 and not reporter.log(at, (1e-3, 1e-4)):
            return at
    return None


def test_a_skipped_step_counts_in_no_average() -> None:
    posted: list[dict[str, Any]] = []
    reporter = make_reporter(posted)
    for values in (step(1.0), step(float("inf"), skipped=True), step(3.0)):
        reporter.add(values, wait_s=0.0)
    assert reporter.log(3, (1e-3, 1e-4))
    found = posted[-1]["values"]
    assert found["loss/joint"] == 2.0
    assert found["grad_norm/generator"] == 1.0
    assert found["updates_skipped"] == 1


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_run_diverges_after_ten_skipped_steps_in_a_row(log_every: int) -> None:
    posted: list[dict[str, Any]] = []
    reporter = make_reporter(posted)
    assert go(reporter, [False] * 5 + [True] * 20, log_every) == 15
    assert posted[-1] == {"kind": "diverged", "step": 15, "updates": 10}


@pytest.mark.parametrize("log_every", [1, 4])
def test_fewer_skipped_steps_in_a_row_end_no_run(log_every: int) -> None:
    posted: list[dict[str, Any]] = []
    reporter = make_reporter(posted)
    assert go(reporter, ([True] * 9 + [False]) * 2, log_every) is None
    assert not any(message["kind"] == "diverged" for message in posted)
    assert posted[-1]["values"]["updates_skipped"] == 18


@pytest.mark.parametrize(("skipped", "stops"), [([True] * 3, 3), ([True, False, True], None)])
def test_a_short_run_diverges_when_all_its_steps_are_skipped(
    skipped: list[bool], stops: int | None
) -> None:
    assert go(make_reporter([], steps=3), skipped, log_every=1) == stops


def test_the_untrained_network_is_measured_without_the_shift_of_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = build_generator(ALEXNET, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(generator.state_dict())
    random = torch.get_rng_state()
    typical = pictures(4, seed=1)
    posted: list[dict[str, Any]] = []
    measured: dict[str, float] = {}
    measure = validation.measure
    monkeypatch.setattr(
        validation, "measure", lambda *args: measured.update(measure(*args)) or measured
    )
    make_reporter(posted, typical=typical).begin(Networks(generator, None))
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    look = validation.Look(ALEXNET, PIXELS, torch.float32)
    estimate_statistics(generator, typical.image, typical.hidden, **look._asdict())
    assert measured == measure(generator, pictures(2), look)
    shown = validation.panel(generator, pictures(2), look)
    assert (posted[0]["pictures"]["output"] == shown["output"]).all()


def test_a_processor_without_bf16_is_a_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with pytest.raises(UserError, match="precision is bf16; this cpu device has no bf16"):
        worker.resolve_precision("bf16", torch.device("cpu"))
