"""Every command that a job prints at its end is one that its job, or MLflow, understands."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.cli
import pytest

from pipelines import cli, closing
from pipelines.ablation.config import AblateConfig
from pipelines.embed.config import EmbedConfig
from pipelines.evaluation.config import EvaluateConfig
from pipelines.export.config import ExportConfig
from pipelines.inpaint.config import InpaintConfig
from pipelines.prepare.config import PrepareConfig
from pipelines.pretrain.config import PretrainConfig
from pipelines.promotion.config import PromoteConfig
from pipelines.serve.config import ServeConfig
from pipelines.workflow.config import WorkflowConfig

CONFIGS = {
    "pretrain": PretrainConfig, "evaluate": EvaluateConfig, "promote": PromoteConfig,
    "serve": ServeConfig, "inpaint": InpaintConfig, "embed": EmbedConfig,
}  # fmt: skip
STORE = "my store [1]"
STAGE = f"{STORE}/pretrain/0123456789abcdef"
RUN = "a" * 32
SUMMARY = {
    "model": f"{STAGE}/model", "dataset": f"{STORE}/prepare/d", "strategy": "free_form",
    "tracking_uri": f"sqlite:///{STORE}/mlflow.db",
}  # fmt: skip
SWEEP = {
    "metric": "m", "comparisons": {"m": {"arms": [{"arm": "best"}, {"arm": "other"}]}}, "steps": 9,
    "cells": [{"arm": "best", "steps": 9, "model": f"{STAGE}/model", "tracking_run_id": RUN}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jobs/pretrain.py"])


def embed_config() -> EmbedConfig:
    return EmbedConfig(model=STAGE, source=("a b",), output="f", normalize=True, store=STORE)


ENDS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "prepare": (
        lambda: closing.after_prepare(PrepareConfig(source="a b", store=STORE), f"{STORE}/p/d"),
        ["pretrain"],
    ),
    "pretrain": (
        lambda: closing.after_pretrain(PretrainConfig(preset="unet", store=STORE), SUMMARY),
        ["serve", "inpaint", "evaluate", "mlflow"],
    ),
    "features": (
        lambda: closing.after_pretrain(PretrainConfig(preset="features", store=STORE), SUMMARY),
        ["embed", "evaluate", "mlflow"],
    ),
    "evaluate": (
        lambda: closing.after_evaluate(
            EvaluateConfig(model=("m",), data=("d",), store=STORE),
            {"models": [{"run_id": None}, {"run_id": RUN}]},
        ),
        ["promote", "mlflow"],
    ),
    "ablate": (
        lambda: closing.after_ablate(AblateConfig(store=STORE), SWEEP),
        ["serve", "promote", "mlflow"],
    ),
    "workflow": (
        lambda: closing.after_workflow(
            WorkflowConfig(store=STORE, name="mine"),
            {"results": {"pretrain": SUMMARY, "promote": {}}},
        ),
        ["serve", "promote", "mlflow"],
    ),
    "workflow until pretrain": (
        lambda: closing.after_workflow(
            WorkflowConfig(store=STORE), {"results": {"pretrain": SUMMARY}}
        ),
        ["serve", "mlflow"],
    ),
    "promote": (
        lambda: closing.after_promote(PromoteConfig(run=RUN, store=STORE), fills=True),
        ["serve", "promote", "promote"],
    ),
    "inpaint": (
        lambda: closing.after_inpaint(
            InpaintConfig(model=STAGE, images="i", masks="m", output="o", store=STORE)
        ),
        ["serve"],
    ),
    "embed": (lambda: closing.after_embed(embed_config(), "f"), ["embed"]),
}


def printed(screen: str) -> list[list[str]]:
    """The words of the commands on the screen."""
    return [shlex.split(line) for line in screen.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("job", ENDS)
def test_every_printed_command_is_understood(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    end, wanted = ENDS[job]
    end()
    commands = printed(capsys.readouterr().err)
    found = []
    for program, name, *words in commands:
        if program.endswith("mlflow"):
            assert name == "ui"
            mlflow.cli.server.make_context("server", words)
            found.append("mlflow")
            continue
        assert Path(program).name == "python"
        found.append(name.removeprefix("jobs/").removesuffix(".py"))
        config: Any = cli.parse(CONFIGS[found[-1]], words)
        assert config.store == STORE
    assert found == wanted


def test_a_command_repeats_the_settings_that_name_the_result() -> None:
    config = embed_config()
    words = closing.command("embed", **closing._changed(config))[2:]
    assert cli.parse(EmbedConfig, words) == config


@pytest.mark.parametrize(
    ("started", "words"),
    [
        ("jobs/pretrain.py", ["jobs/serve.py"]),
        ("/opt/it/jobs/pretrain.py", ["/opt/it/jobs/serve.py"]),
        ("python -m pipelines pretrain", ["-m", "pipelines", "serve"]),
    ],
)
def test_a_command_starts_as_the_job_was_started(
    started: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert closing.command("serve")[1:] == words


def test_usual_places_are_left_out_and_others_are_short() -> None:
    assert closing.shown(str(Path.cwd() / "store" / "x")) == "store/x"
    assert closing.shown("/elsewhere/x") == "/elsewhere/x"
    assert closing.shown("s3://bucket/x") == "s3://bucket/x"
    assert closing.mlflow_ui("http://mlflow:5000") == []


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    closing.show_store_page(str(tmp_path / "file"))
    assert re.fullmatch("warning: the page of the store is not as it should be: .*\n",
                        capsys.readouterr().err)  # fmt: skip


def test_the_card_of_an_export_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    closing.after_export(ExportConfig(model="m", output="encoder"))
    assert capsys.readouterr().err.strip().endswith("encoder/README.md")
