"""A run names its model wherever that lies now."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from model_helpers import save_small_model

from pipelines.errors import UserError
from pipelines.models.resolve import resolve_model
from pipelines.tracking import models

RUN, KEY = "0123456789abcdef" * 2, "k" * 64


@pytest.fixture
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    folder = tmp_path / "old" / "pretrain" / KEY[:16] / "model"
    found = {"key": KEY, "model": save_small_model(folder), "model_uri": "models:/m-1"}
    monkeypatch.setattr(models, "run_summary", lambda uri, run_id: found if run_id == RUN else {})
    return found


def resolve(ref: str, store: Path) -> str:
    return resolve_model(ref, store=str(store), tracking_uri="sqlite:///none").uri


def test_a_run_names_its_model_before_and_after_its_store_was_moved(
    summary: dict[str, Any], tmp_path: Path
) -> None:
    for ref in (RUN, f"runs:/{RUN}/model", f"runs:/{RUN}"):
        assert resolve(ref, tmp_path / "old") == summary["model"]
    (tmp_path / "old").rename(tmp_path / "new")
    moved = str(tmp_path / "new" / "pretrain" / KEY[:16] / "model")
    assert resolve(f"runs:/{RUN}/model", tmp_path / "new") == moved


def test_a_key_of_a_model_is_no_name(summary: dict[str, Any], tmp_path: Path) -> None:
    def name(ref: str) -> str:
        return resolve_model(ref, store=str(tmp_path / "old"), tracking_uri="sqlite:///none").name

    folder = shutil.move(tmp_path / "old" / "pretrain" / KEY[:16], tmp_path / ("0" * 16))
    assert name(str(folder)) == "inpaint central 00000000"
    assert name(f"ours={folder}") == "ours"
    assert name(str(Path(folder).rename(tmp_path / "mine"))) == "mine"


def test_a_run_whose_folder_is_gone_gives_the_model_that_it_logged(
    summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(uri: str, model_uri: str, folder: Path) -> str:
        assert model_uri == "models:/m-1"
        shutil.copytree(tmp_path / "old" / "pretrain" / KEY[:16] / "model", folder,
                        dirs_exist_ok=True)  # fmt: skip
        return RUN

    monkeypatch.setattr(models, "download_model", download)
    summary["model"] = str(tmp_path / "gone")
    assert resolve(RUN, tmp_path / "other").startswith(str(tmp_path / "other" / "evaluate"))
    del summary["model_uri"]
    with pytest.raises(UserError, match=f"run '{RUN}', whose model folder is none of .*--store"):
        resolve(RUN, tmp_path / "other")


@pytest.mark.parametrize("ref", ["runs:/123/model", "runs:/"])
def test_what_a_run_has_no_model_at_is_told(ref: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be runs:/RUN_ID/NAME, or the run"):
        resolve(ref, tmp_path)
