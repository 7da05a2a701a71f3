"""What a person reads while a training runs."""

import io

import pytest
from rich.console import Console

from pipelines.pretrain.driver import TrainingProgress

SPEED = {"images_per_second": 32.0, "seconds_per_step": 2.0}


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"loss/reconstruction": 0.5, "loss/joint": 0.5}, "rec 0.5000"),
        ({"loss/classification": 2.0, "loss/joint": 2.0}, "class 2.0000"),
        (
            {"loss/reconstruction": 0.5, "loss/joint": 0.6, "loss/discriminator": 0.7},
            "rec 0.5000  joint 0.6000  D 0.7000",
        ),
    ],
)
def test_a_joint_loss_is_told_where_there_is_a_second_part(
    losses: dict[str, float], said: str
) -> None:
    out = io.StringIO()
    TrainingProgress(Console(file=out, width=200), 100).record(100, losses | SPEED)
    assert out.getvalue() == f"step 100/100  {said}  32 images/s\n"
