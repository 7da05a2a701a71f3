"""The page of a store names what is in it, newest first, and every link leads somewhere."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pipelines import storage
from pipelines.data.source_names import source_name
from pipelines.store_page.find import curve_of, find_contents
from pipelines.store_page.page import about, href
from pipelines.store_page.write import write_store_page


def training(store: str, key: str, ended_at: str, **more: Any) -> None:
    stage = storage.join(store, "pretrain", key)
    summary = {
        "preset": "unet", "strategy": "free_form", "steps": 400, "dataset": f"{store}/prepare/d1",
        "dataset_fingerprint": "f1", "ended_at": ended_at, "tracking_run_id": "a" * 32,
        "curve": [[100, 24.5], [200, 25.0]],
        "validation": {"psnr_hole": 25.0, "psnr_telea": 24.5, "psnr_visible_mean": 19.0},
    } | more  # fmt: skip
    storage.publish_json(storage.join(stage, "commit.json"), summary)
    storage.publish(storage.join(stage, "panel.png"), b"png")


def dataset(store: str, key: str, fingerprint: str, source: str) -> None:
    home = storage.join(store, "prepare", key)
    record = {"fingerprint": fingerprint, "source": source, "written": 1500}
    storage.publish_json(storage.join(home, "manifest.json"), record)
    storage.publish(storage.join(home, "card.html"), b"card")


def full_store(store: str) -> None:
    dataset(store, "d1", "f1", "/data/holiday <b>photos")
    training(store, "k" * 16, "2026-11-27T10:00:00+00:00")
    training(store, "m" * 16, "2026-11-28T10:00:00+00:00", preset="inpaint", strategy="central")
    features = {"preset": "features", "strategy": "grid_60", "curve": [[10, 0.04]]}
    errors = {"target_error": 0.03, "target_error_mean": 0.05}
    training(store, "n" * 16, "2026-11-26T10:00:00+00:00", **features, validation=errors)
    history = [{"step": 10, "values": {"validation/psnr_hole": 11.0}}]
    state = {"step": 10, "network": {"preset": "unet"}, "history": history}
    unfinished = storage.join(store, "pretrain", "u" * 16, "checkpoints", "step-00000010")
    storage.publish_json(storage.join(unfinished, "state.json"), state)
    report = {"models": [{"name": "mine"}], "sections": [{"title": "linear, photos"}],
              "at": "2026-11-28T11:00:00+00:00"}  # fmt: skip
    storage.publish_json(storage.join(store, "evaluate", "reports", "r", "report.json"), report)
    storage.publish(storage.join(store, "evaluate", "reports", "r", "report.html"), b"report")
    sweep = {"arms": ["central-0"], "verdict": "No verdict.", "at": "2026-11-28T12:00:00+00:00"}
    storage.publish_json(storage.join(store, "ablate", "s", "ablation.json"), sweep)
    storage.publish(storage.join(store, "ablate", "s", "ablation.html"), b"sweep")


def test_a_better_smooth_start_stands_above_the_model_and_is_not_marked(tmp_path: Path) -> None:
    found = {"psnr_hole": 25.0, "psnr_telea": 24.5, "psnr_untrained": 25.1}
    seen = {"ssim_hole": 0.71, "sharpness": 0.13, "seam": 0.9}
    training(str(tmp_path), "k" * 16, "2026-11-27T10:00:00+00:00", validation=found | seen)
    text = storage.read_bytes(write_store_page(str(tmp_path))).decode()
    rows = re.findall(r"<tr><td( class=best)?>([^<]*)</td><td(?: class=best)?>([^<]*) dB", text)
    assert rows == [
        ("", "smooth start", "25.10"),
        (" class=best", "this model", "25.00"),
        ("", "Telea", "24.50"),
    ]
    assert "sharpness 0.13 and seam 0.90 of the truth" in text


@pytest.mark.parametrize("kind", ["folder [1] ä", "memory"])
def test_everything_is_named_and_linked(kind: str, tmp_path: Path) -> None:
    store = f"memory://{tmp_path.name}" if kind == "memory" else str(tmp_path / kind)
    full_store(store)
    uri = write_store_page(store)
    page = storage.read_bytes(uri).decode()
    shown = re.findall("<h3>(.*?)</h3>", page)
    photos = "holiday &lt;b&gt;photos"
    assert shown[1:] == [
        f"inpaint, central holes on {photos}, 400 steps",
        f"unet, free_form holes on {photos}, 400 steps",
        f"features, grid_60 holes on {photos}, 400 steps",
    ]
    assert shown[0] == "unet, not finished, step 10"  # written a moment ago
    assert "<td class=best>25.00 dB</td>" in page and "24.50 dB" in page
    assert "No verdict." in page and "mine" in page
    for target in re.findall("(?:href|src)='([^']*)'", page):
        assert storage.exists(storage.join(store, unquote(target))), target


def test_a_second_page_takes_the_place_of_the_first_and_links_stay(tmp_path: Path) -> None:
    store = str(tmp_path)
    full_store(store)
    first = write_store_page(store)
    training(store, "p" * 16, "2026-11-28T15:00:00+00:00", steps=800, seed=1)
    assert write_store_page(store) == first
    assert "seed 1, 800 steps" in Path(first).read_text()
    links = sorted((tmp_path / "by-name").iterdir())
    assert [link.name for link in links] == [
        "2026-11-26-features-grid_60-holiday-b-photos-nnnnnnnn",
        "2026-11-27-unet-free_form-holiday-b-photos-kkkkkkkk",
        "2026-11-28-inpaint-central-holiday-b-photos-mmmmmmmm",
        "2026-11-28-unet-free_form-holiday-b-photos-seed-1-pppppppp",
    ]
    assert all((link / "commit.json").is_file() for link in links)


def test_a_damaged_record_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    full_store(str(tmp_path))
    (tmp_path / "pretrain" / ("k" * 16) / "commit.json").write_text("{")
    page = Path(write_store_page(str(tmp_path))).read_text()
    assert "What could not be read" in page and "cut or altered" in page
    assert "inpaint, central holes" in page


@pytest.mark.parametrize("lacking", ["strategy", "steps", "dataset_fingerprint", "validation"])
def test_a_record_that_lacks_something_is_told(lacking: str, tmp_path: Path) -> None:
    full_store(str(tmp_path))
    record = tmp_path / "pretrain" / ("k" * 16) / "commit.json"
    summary = storage.read_json(str(record))
    del summary[lacking]
    record.write_text(json.dumps(summary))
    page = Path(write_store_page(str(tmp_path))).read_text()
    assert "What could not be read" in page and f"KeyError: &#x27;{lacking}&#x27;" in page
    assert "inpaint, central holes" in page


def test_a_dataset_without_a_card_is_not_linked(tmp_path: Path) -> None:
    full_store(str(tmp_path))
    (tmp_path / "prepare" / "d1" / "card.html").unlink()
    assert "card.html" not in Path(write_store_page(str(tmp_path))).read_text()


def test_trainings_without_a_card_of_their_own_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_store(str(tmp_path))
    monkeypatch.setattr("pipelines.store_page.page.CARDS", 1)
    page = Path(write_store_page(str(tmp_path))).read_text()
    for key in "kmn":
        assert f"<a href='pretrain/{key * 16}/'>" in page


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    assert "nothing in" in Path(write_store_page(str(tmp_path / "new"))).read_text()
    assert find_contents(str(tmp_path / "other")).trainings == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/photos", "photos"),
        ("/data/photos/train", "photos/train"),
        ("s3://bucket/photos/", "photos"),
        ("/x/cifar10.tar.gz", "cifar10"),
        ("/x/images.v2.zip", "images.v2"),
        ("store/samples-1/pictures", "sample photographs"),
        ("", "unnamed images"),
        ("/", "unnamed images"),
        ("/x/.tar", ".tar"),
        ("https://user:secret@host/set.tar", "set"),
    ],
)
def test_a_dataset_is_called_after_its_source(source: str, name: str) -> None:
    assert source_name(source) == name


def test_the_curve_is_that_of_the_holes_else_of_the_targets() -> None:
    history = [{"step": 5, "values": {"loss/joint": 1.0}}]
    assert curve_of(history) == []
    history += [{"step": 10, "values": {"validation/target_error": 0.5}}]
    assert curve_of(history) == [(10, 0.5)]
    history += [{"step": 10, "values": {"validation/psnr_hole": 12.0}}]
    assert curve_of(history) == [(10, 12.0)]


def test_a_single_measurement_is_no_curve(tmp_path: Path) -> None:
    training(str(tmp_path), "k" * 16, "2026-11-27T10:00:00+00:00", curve=[[100, 24.5]])
    write_store_page(str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "25.00 dB" in page and "<svg" not in page


def test_trainings_that_differ_in_target_or_layers_have_other_names() -> None:
    usual = {"preset": "features", "strategy": "grid_60"}
    assert about(usual) == about(usual | {"target": "hog", "layers": "masked"})
    assert about(usual) == "features, grid_60 holes"
    other = about(usual | {"target": "pixels", "layers": "dense"})
    assert other == "features, grid_60 holes, pixels, dense layers"
    assert about(usual | {"preset": "unet", "layers": "dense"}) == "unet, grid_60 holes"


def test_a_curve_has_the_unit_of_what_it_is_drawn_of(tmp_path: Path) -> None:
    store = str(tmp_path)
    both = {"psnr_hole": 15.0, "psnr_visible_mean": 13.0, "target_error": 0.2}
    training(store, "k" * 16, "2026-11-27T10:00:00+00:00", preset="features", validation=both)
    history = [{"step": 10, "values": {"validation/target_error": 0.04, "loss/joint": 1.0}}]
    state = {"step": 10, "network": {"preset": "features"}, "history": history}
    unfinished = storage.join(store, "pretrain", "u" * 16, "checkpoints", "step-00000010")
    storage.publish_json(storage.join(unfinished, "state.json"), state)
    page = Path(write_store_page(store)).read_text()
    assert "24.5 to 25 dB" in page
    assert "0.04 error of the target at step 10" in page
    assert "to 25 error of the target" not in page and "0.04 dB" not in page


def test_what_lies_elsewhere_is_linked_by_its_whole_place() -> None:
    assert href("/store/a b/c.html", "/store") == "a%20b/c.html"
    assert href("/stored/c.html", "/store") == "file:///stored/c.html"
    assert href("s3://b/c.html", "/store") == "s3://b/c.html"
