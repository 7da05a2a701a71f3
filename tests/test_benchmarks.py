"""Benchmarks still run: what they share with the product moves on without them."""

import sys

import pytest
import torch

from benchmarks import train_step


@pytest.mark.slow  # a network of 75 million weights, three times
def test_the_step_is_timed_beside_the_ports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--preset inpaint --batch-size 2 --rounds 1 --steps 1 --loss-steps 0 --threads"
    monkeypatch.setattr(sys, "argv", ["", *flags.split(), str(torch.get_num_threads())])
    monkeypatch.setattr(train_step, "MATMUL_SIDE", {"cpu": 64})
    train_step.main()
    assert "inpaint: ours" in capsys.readouterr().out
