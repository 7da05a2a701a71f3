"""The draw for validation: of every class its share, however the work is cut."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_helpers import prepared, rows_of
from helpers import write_images

from pipelines.prepare import draw
from pipelines.prepare.draw import CANDIDATE, Draw

SHARE = 0.05


def drawn(
    counts: dict[str, int], parts: int = 1, held: dict[str, tuple[int, int]] | None = None
) -> tuple[Draw, set[str]]:
    """The draw of classes with so many images each, and the keys that are for validation."""
    images = [(f"{name}/{n}.jpg", name) for name, count in counts.items() for n in range(count)]
    np.random.default_rng(parts).shuffle(images)
    cut = [images[part::parts] for part in range(parts)]

    def arrays() -> list[tuple[tuple[str, ...], np.ndarray]]:
        found = []
        for part in cut:
            names = tuple({name: 0 for _, name in part})
            rows = [(names.index(name), draw.of_key(0, key)) for key, name in part]
            found.append((names, np.array(rows, CANDIDATE)))
        return found

    chosen = draw.draw(0, SHARE, arrays, {}, held or {})
    return chosen, {key for key, name in images if chosen.holds(key, name)}


def by_class(keys: set[str]) -> Counter[str]:
    return Counter(key.split("/")[0] for key in keys)


def test_every_class_gives_its_share_and_small_ones_one_image() -> None:
    counts = {"one": 1, "two": 2, "ten": 10, "many": 1000, "": 61}
    chosen, keys = drawn(counts)
    assert by_class(keys) == {"two": 1, "ten": 1, "many": 50, "": 3}
    assert chosen.rows == len(keys)


@pytest.mark.parametrize("parts", [2, 7])
def test_how_the_work_is_cut_draws_the_same(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"a": 300, "b": 41, "c": 3}
    monkeypatch.setattr(draw, "AT_ONCE", 10)
    assert drawn(counts, parts) == drawn(counts)


def test_an_image_more_moves_at_most_one_other_and_no_other_class() -> None:
    _, before = drawn({"a": 20, "b": 50})
    for more in range(21, 90):
        _, after = drawn({"a": more, "b": 50})
        old = {key for key in after if key != f"a/{more - 1}.jpg"}
        assert len(before - old) + len(old - before) <= 1
        before = after


def test_what_a_dataset_holds_counts_and_added_images_give_at_most_their_own_share() -> None:
    assert by_class(drawn({"a": 20}, held={"a": (80, 5)})[1]) == {}
    assert by_class(drawn({"a": 40}, held={"a": (80, 3)})[1]) == {"a": 2}
    assert by_class(drawn({"a": 40}, held={"a": (800, 0)})[1]) == {"a": 2}


def test_images_that_are_added_one_by_one_keep_the_share() -> None:
    images = validation = 0
    for _ in range(100):
        validation += drawn({"a": 1}, held={"a": (images, validation)})[0].rows
        images += 1
        assert validation == draw.wanted(images, SHARE)


def test_of_small_classes_each_is_in_both_splits(serially: None, tmp_path: Path) -> None:
    source = tmp_path / "p"
    write_images(source, {f"c{n}": 4 for n in range(5)} | {"big": 20})
    manifest = prepared(source, tmp_path / "d", validation_share=0.1)
    held = rows_of(tmp_path / "d")
    found = by_class({key for key, (split,) in held.items() if split == "val"})
    assert found == {**{f"c{n}": 1 for n in range(5)}, "big": 2}
    assert manifest.written == 40
    write_images(source, {"c0": 1, "new": 5}, first=900)
    prepared(source, tmp_path / "d", validation_share=0.1)
    after = rows_of(tmp_path / "d")
    assert {key: after[key] for key in held} == held
    assert [after[f"{name}/0900.jpg"][0] for name in ("c0",)] == ["train"]
    assert sum(split == "val" for key, (split,) in after.items() if key.startswith("new/")) == 1
