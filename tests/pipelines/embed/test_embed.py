"""The features of a folder: equal to those of the Python face, resumable, committed last."""

import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
from dataset_helpers import prepared
from helpers import draw_image, write_images
from model_helpers import save_small_model
from PIL import Image

from pipelines import api, storage
from pipelines.embed import features, neighbours, run, sources
from pipelines.embed.config import EmbedConfig
from pipelines.embed.run import embed_images
from pipelines.embed.worker import Embedder
from pipelines.errors import UserError
from pipelines.prepare.source_config import SourceConfig


@pytest.fixture
def here(serially: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Actors run in this process, without a cluster; the list tells the units that ran."""
    ran: list[int] = []

    def one_by_one(config: EmbedConfig, task: Any, todo: list[int], resources: Any) -> None:
        actor = Embedder(task._replace(threads=2))
        for unit in todo:
            actor.embed(unit)
            ran.append(unit)

    monkeypatch.setattr(run, "_run", one_by_one)
    return ran


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_model(tmp_path_factory.mktemp("model") / "m")


def photos(folder: Path) -> Path:
    write_images(folder, {"apple": 3, "pear": 2})
    return folder


def config_of(model: str, source: Path | str, store: Path, **more: Any) -> EmbedConfig:
    given = {"output": str(store / "features"), "batch_size": 2, **more}
    return EmbedConfig(model=model, source=str(source), store=str(store), **given)


def rows_of(uri: str) -> dict[str, tuple[str | None, np.ndarray]]:
    """As another program reads them: Arrow alone, by the names in the manifest."""
    names = [file["path"] for file in storage.read_json(f"{uri}/embeddings.json")["files"]]
    table = pyarrow.dataset.dataset([f"{uri}/{name}" for name in names]).to_table()
    return {
        row["key"]: (row["label"], np.array(row["features"], np.float32))
        for row in table.to_pylist()
    }


def test_the_features_of_a_folder_are_those_of_the_python_face(
    here: list[int], model: str, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    uri = embed_images(config_of(model, source, tmp_path / "store"))
    rows = rows_of(uri)
    assert {key: label for key, (label, _) in rows.items()} == {
        "apple/0000.jpg": "apple", "apple/0001.jpg": "apple", "apple/0002.jpg": "apple",
        "pear/0003.jpg": "pear", "pear/0004.jpg": "pear",
    }  # fmt: skip
    loaded = api.load(model, store=tmp_path / "store", device="cpu")
    expected = loaded.embed([source / key for key in rows], batch_size=2)
    np.testing.assert_allclose([vector for _, vector in rows.values()], expected, atol=1e-5)
    assert not (tmp_path / "store" / "features" / "_work").exists()


def test_columns_are_what_the_manifest_says(here: list[int], model: str, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    settings = {"layer": "e3", "pool": "max", "dtype": "float16", "normalize": True}
    uri = embed_images(config_of(model, source, tmp_path / "store", **settings))
    found = features.find_embeddings(uri)
    assert found is not None and (found.width, found.rows) == (128, 5)
    (entry,) = found.files
    schema = pa.parquet.read_schema(f"{uri}/{entry['path']}")
    assert schema.field("features").type.value_type == pa.float16()
    assert schema.field("features").type.list_size == 128
    lengths = [np.linalg.norm(vector) for _, vector in rows_of(uri).values()]
    np.testing.assert_allclose(lengths, 1, atol=5e-3)
    assert found.settings.items() >= {"layer": "e3", "pool": "max", "dtype": "float16"}.items()
    assert storage.sha256_of_uri(f"{uri}/{entry['path']}") == entry["sha256"]


def test_a_dataset_gives_its_keys_and_class_names(
    here: list[int], model: str, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", {"apple": 6, "pear": 7})
    prepared(tmp_path / "photos", tmp_path / "d")
    rows = rows_of(embed_images(config_of(model, tmp_path / "d", tmp_path / "store")))
    assert len(rows) == 13 and all(label == key.split("/")[0] for key, (label, _) in rows.items())
    assert len(here) > 1  # a unit for each row group


def test_an_archive_is_read_as_by_prepare(here: list[int], model: str, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(source, ".")
    rows = rows_of(embed_images(config_of(model, tmp_path / "a.tar", tmp_path / "store")))
    plain = rows_of(embed_images(config_of(model, source, tmp_path / "other")))
    assert rows.keys() == plain.keys()
    for key, (label, vector) in rows.items():
        assert label == plain[key][0]
        np.testing.assert_allclose(vector, plain[key][1], atol=1e-5)


def test_labels_and_several_sources_are_taken_as_by_prepare(
    here: list[int], model: str, tmp_path: Path
) -> None:
    first, second = photos(tmp_path / "photos"), tmp_path / "more"
    write_images(second, {"plum": 1}, first=7)
    (tmp_path / "labels.csv").write_text("0000.jpg,red\n0003.jpg,green\n")
    given = {"labels": str(tmp_path / "labels.csv"), "class_from": "parent"}
    one = config_of(model, first, tmp_path / "store", **given)
    rows = rows_of(embed_images(replace(one, source=(str(first), str(second)))))
    assert {key.split("/", 1)[-1]: label for key, (label, _) in rows.items()} == {
        "apple/0000.jpg": "red", "apple/0001.jpg": "apple", "apple/0002.jpg": "apple",
        "pear/0003.jpg": "green", "pear/0004.jpg": "pear", "plum/0007.jpg": "plum",
    }  # fmt: skip
    other = {"output": None, "class_from": "none"}
    rows = rows_of(embed_images(config_of(model, first, tmp_path / "store", **other)))
    assert [label for label, _ in rows.values()] == [None] * 5


def test_a_label_list_that_means_two_images_by_one_name_commits_nothing(
    here: list[int], model: str, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    shutil.copy(source / "apple" / "0000.jpg", source / "pear" / "0000.jpg")
    (tmp_path / "labels.csv").write_text("0000.jpg,red\n")
    given = {"labels": str(tmp_path / "labels.csv")}
    with pytest.raises(UserError, match=r"names '0000\.jpg', and 2 images"):
        embed_images(config_of(model, source, tmp_path / "store", **given))
    assert features.find_embeddings(str(tmp_path / "store" / "features")) is None


def test_flags_of_a_source_are_refused_for_a_dataset(
    here: list[int], model: str, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", {"apple": 2})
    prepared(tmp_path / "photos", tmp_path / "d")
    with pytest.raises(UserError, match=r"--class-from is given.*prepared dataset"):
        embed_images(config_of(model, tmp_path / "d", tmp_path / "store", class_from="first"))


def test_a_killed_job_resumes_where_it_was(
    here: list[int], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "photos", {"apple": 6, "pear": 7})
    prepared(tmp_path / "photos", tmp_path / "d")
    whole = rows_of(embed_images(config_of(model, tmp_path / "d", tmp_path / "whole")))
    units = len(here)
    asked = config_of(model, tmp_path / "d", tmp_path / "store")
    plain = run._run

    def killed(config: EmbedConfig, task: Any, todo: list[int], resources: Any) -> None:
        plain(config, task, todo[:1], resources)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        embed_images(asked)
    uri = str(tmp_path / "store" / "features")
    assert features.find_embeddings(uri) is None
    (tmp_path / "store" / "features" / "part-000001-dead.parquet").write_bytes(b"half")
    monkeypatch.setattr(run, "_run", plain)
    del here[:]
    assert embed_images(asked) == uri
    assert here == list(range(1, units))
    assert not (tmp_path / "store" / "features" / "part-000001-dead.parquet").exists()
    again = rows_of(uri)
    assert again.keys() == whole.keys()
    for key, (_, vector) in again.items():
        np.testing.assert_array_equal(vector, whole[key][1])
    del here[:]
    assert embed_images(asked) == uri and here == []  # committed: nothing is done again


def test_other_settings_have_another_place_and_never_share_one(
    here: list[int], model: str, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    first = embed_images(config_of(model, source, tmp_path / "s", output=None))
    second = embed_images(config_of(model, source, tmp_path / "s", output=None, layer="e5"))
    assert first != second
    embed_images(config_of(model, source, tmp_path / "s"))
    with pytest.raises(UserError, match="holds the features of another job"):
        embed_images(config_of(model, source, tmp_path / "s", pool="mean"))
    with pytest.raises(UserError, match="which lies in the source"):
        embed_images(config_of(model, source, tmp_path / "s", output=str(source / "f")))


def test_what_cannot_be_embedded_is_counted_listed_and_bounded(
    here: list[int], model: str, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    (source / "apple" / "bad.jpg").write_text("text")
    (source / "notes.md").write_text("text")
    uri = embed_images(config_of(model, source, tmp_path / "store"))
    found = features.find_embeddings(uri)
    assert found is not None and (found.rows, found.faults) == (5, {"unidentified": 1})
    (fault,) = pa.parquet.read_table(f"{uri}/faults.parquet").to_pylist()
    assert fault["key"] == "apple/bad.jpg" and "not an image" in fault["fault"]
    strict = {"max_bad_images": 0, "max_bad_share": 0.0}
    with pytest.raises(UserError, match="1 of 6 images cannot be embedded; allowed are"):
        embed_images(config_of(model, source, tmp_path / "strict", **strict))
    assert features.find_embeddings(str(tmp_path / "strict" / "features")) is None


def test_neighbours_are_found_by_cosine_about_the_mean(
    here: list[int], model: str, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    query = source / "pear" / "0004.jpg"
    uri = embed_images(
        config_of(model, source, tmp_path / "store", query=(str(query),), neighbours=3)
    )
    done = features.find_embeddings(uri)
    assert done is not None
    rows = rows_of(uri)
    vectors = np.stack([vector for _, vector in rows.values()]).astype(np.float64)
    centred = vectors - vectors.mean(0)
    directions = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    at = list(rows).index("pear/0004.jpg")
    order = np.argsort(-(directions @ directions[at]))
    (found,) = neighbours.find_nearest(uri, done, vectors[at : at + 1].astype(np.float32), 3)
    assert [each.key for each in found] == [list(rows)[number] for number in order[:3]]
    assert found[0].cosine == pytest.approx(1, abs=1e-6)
    (sheet,) = Path(uri).glob("neighbours-00-0004.png")
    with Image.open(sheet) as opened:
        assert opened.size == (4 * 132 + 4, 128 + 14 + 12)
        assert opened.getpixel((4 + 132 + 64, 4 + 64)) != (211, 211, 211)


def test_a_query_that_is_no_image_is_refused_before_any_work(
    here: list[int], model: str, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    (tmp_path / "q.jpg").write_text("text")
    for query, message in (("/nowhere.jpg", "no such image"), (tmp_path / "q.jpg", "not an image")):
        with pytest.raises(UserError, match=message):
            embed_images(config_of(model, source, tmp_path / "store", query=(str(query),)))
    assert here == [] and not (tmp_path / "store" / "features").exists()


def test_an_image_of_a_unit_is_found_again(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    with sources.find(SourceConfig(source=str(source))) as found:
        (unit,) = found.units()
    data = (source / "pear" / "0003.jpg").read_bytes()
    assert sources.find_image(unit, "pear/0003.jpg") == data
    shutil.rmtree(source / "pear")
    assert sources.find_image(unit, "pear/0003.jpg") is None
    assert sources.find_image(unit, "pear/0009.jpg") is None


@pytest.mark.slow
def test_actors_of_a_cluster_do_the_same(ray_cluster: None, model: str, tmp_path: Path) -> None:
    for number in range(30):
        Image.fromarray(draw_image(number, 90, 100)).save(tmp_path / f"{number}.png")
    (tmp_path / "photos").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "photos" / path.name)
    rows = rows_of(embed_images(config_of(model, tmp_path / "photos", tmp_path / "store")))
    loaded = api.load(model, store=tmp_path / "store", device="cpu")
    expected = loaded.embed([tmp_path / "photos" / key for key in rows])
    np.testing.assert_allclose([vector for _, vector in rows.values()], expected, atol=1e-4)


def kill_actors(most: int, ended: threading.Event) -> None:
    killed: set[int] = set()
    while len(killed) < most and not ended.wait(0.05):
        for process in psutil.process_iter(["cmdline"]):
            name = (process.info["cmdline"] or [""])[0]
            if name.startswith("ray::Embedder.embed") and process.pid not in killed:
                killed.add(process.pid)
                process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("most", "lost"), [(1, False), (100, True)])
def test_a_lost_process_is_replaced_but_not_for_ever(
    most: int,
    lost: bool,
    ray_cluster: None,
    model: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_images(tmp_path / "photos", {"apple": 200, "pear": 200})
    config = config_of(model, tmp_path / "photos", tmp_path / "store")
    ended = threading.Event()
    killer = threading.Thread(target=kill_actors, args=(most, ended))
    killer.start()
    try:
        if lost:
            with pytest.raises(UserError, match=r"lost a process 4 times.*rerun the same command"):
                embed_images(config)
        else:
            assert len(rows_of(embed_images(config))) > 0
    finally:
        ended.set()
        killer.join()
    told = capfd.readouterr()
    assert "a process that embeds was lost; 1 part left to embed" in told.err
    assert "core_worker.cc" not in told.err
