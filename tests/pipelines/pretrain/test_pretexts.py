"""Sibling pretexts from images to a model that evaluation reads, without a cluster."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dataset_helpers import prepared, run_serially, write_smooth_images
from training_helpers import check_features, reference_of, take_steps

from ce_model.pretexts.draws import origin_of
from pipelines.ablation.cells import curve_of
from pipelines.ablation.config import AblateConfig, arms, cells, pretraining
from pipelines.data import stream, stream_plan
from pipelines.data.manifest import Manifest
from pipelines.errors import UserError
from pipelines.evaluation import report
from pipelines.export.model_card import LEARNED, PAPERS
from pipelines.pretrain import device_feed, panel, validation, worker
from pipelines.pretrain import run as run_module
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import pretrain_key, settings_in_key
from pipelines.pretrain.parameters import effective
from pipelines.pretrain.recipe import resolve_recipe
from pipelines.pretrain.summary import describe_model
from pipelines.pretrain.task import Task
from pipelines.pretrain.validation import EvalSettings, FixedImages
from pipelines.store_page.page import about

CPU = torch.device("cpu")
NAMES = ("relative_position", "exemplar", "transformation")
each_pretext = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    """Some 20 training images; holes of another kind than those of preset features."""
    folder = tmp_path_factory.mktemp("pretexts")
    write_smooth_images(folder / "images", 24)
    uri = str(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        run_serially(patch)
        manifest = prepared(
            folder / "images", uri, sides=(128,), stored_side=160, strategies=("central",)
        )
    return uri, manifest


def task_of(name: Any, dataset: tuple[str, Manifest], **more: Any) -> tuple[PretrainConfig, Task]:
    uri, manifest = dataset
    config = PretrainConfig(
        preset="features", pretext=name, **{"steps": 3, "batch_size": 4, "seed": 5, **more}
    )
    recipe = resolve_recipe(config, manifest.mean_rgb, manifest.rows("train"))
    plan = run_module._plan(config, recipe, uri, manifest)
    return config, run_module._task(config, recipe, plan, "stage")


def batches_of(task: Task) -> list[stream.Batch]:
    plan = task.plan
    return [b for w in stream_plan.windows(plan) for b in stream.read_window(plan, w)]


@each_pretext
def test_a_pretext_goes_from_images_to_a_model_that_evaluation_reads(
    name: str, dataset: tuple[str, Manifest], tmp_path: Path
) -> None:
    _, task = task_of(name, dataset)
    recipe = task.recipe
    networks, optimizers = worker.build(task, CPU)
    for _, measured in take_steps(task, networks, optimizers):
        assert measured["nonfinite"] == 0 and 0 <= measured["pretext/accuracy"] <= 1

    fixed = worker.read_fixed_images(task, recipe.fixed_split, 3, (0, 1), CPU)
    look = EvalSettings(recipe.network, recipe.objective, torch.float32)
    found = validation.measure(networks.generator, fixed, look)
    assert {"loss", "accuracy", "accuracy_chance"} <= set(found)
    assert found == validation.measure(networks.generator, fixed, look)
    assert panel.draw(validation.panel(networks.generator, fixed, look), name)[1:4] == b"PNG"

    check_features(networks, recipe, tmp_path / "model", pretext=name)
    assert reference_of(tmp_path / "model").name.startswith(f"features {name}")


@each_pretext
def test_a_sample_follows_from_seed_step_and_row_for_any_number_of_workers(
    name: str, dataset: tuple[str, Manifest]
) -> None:
    origins: list[dict[tuple[int, int], int]] = []
    for workers in (1, 2, 4):
        _, task = task_of(name, dataset, num_workers=workers)
        found = {}
        for batch, fed in zip(
            batches_of(task), device_feed.feed(iter(batches_of(task)), CPU, 5), strict=True
        ):
            assert fed.origin is not None
            row, step = (torch.from_numpy(batch[n].copy()) for n in ("row", "step"))
            assert torch.equal(fed.origin, origin_of(row, step, 5))
            keys = fed.origin[:, 1].tolist()
            pairs = zip(step.tolist(), row.tolist(), strict=True)
            found |= dict(zip(pairs, keys, strict=True))
        origins.append(found)
    assert origins[0] == origins[1] == origins[2]


def test_inpainting_gets_no_origin(dataset: tuple[str, Manifest]) -> None:
    _, task = task_of("relative_position", dataset)
    batch = next(device_feed.feed(iter(batches_of(task)), CPU))
    assert batch.origin is None and len(batch.given) == 2


def test_exemplar_trains_on_its_classes_alone(dataset: tuple[str, Manifest]) -> None:
    _, manifest = dataset
    rows = manifest.rows("train")
    _, every = task_of("exemplar", dataset)
    assert every.recipe.network.exemplar_classes == every.plan.rows == rows
    _, some = task_of("exemplar", dataset, exemplar_classes=9, steps=8)
    assert some.plan.rows == some.recipe.network.exemplar_classes == 9
    seen = np.concatenate([batch["row"] for batch in batches_of(some)])
    assert len(seen) == 8 * 4 and set(seen) == set(range(9))
    first_epoch = seen[:8]
    assert len(set(first_epoch)) == 8
    with pytest.raises(UserError, match=f"exemplar_classes is {rows + 1}, and .* has {rows}"):
        task_of("exemplar", dataset, exemplar_classes=rows + 1)


def test_ranks_share_what_is_measured(
    dataset: tuple[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, task = task_of("transformation", dataset)
    networks, _ = worker.build(task, CPU)
    look = EvalSettings(task.recipe.network, task.recipe.objective, torch.float32)
    alone = validation.measure(
        networks.generator, worker.read_fixed_images(task, "train", 5, (0, 1), CPU), look
    )
    parts = [worker.read_fixed_images(task, "train", 5, (rank, 2), CPU) for rank in range(2)]
    totals: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: totals.append(total.clone()))
    validation.measure(networks.generator, parts[0], look)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(totals[0]))
    assert validation.measure(networks.generator, parts[1], look) == pytest.approx(alone, rel=1e-4)
    named = ("rotation", "shift_across", "shift_down")
    assert alone["accuracy"] == pytest.approx(sum(alone[f"accuracy_{n}"] for n in named) / 3)
    nothing = FixedImages(*(x[:0] for x in (parts[0].image, parts[0].hidden, parts[0].row)))  # type: ignore[index]
    assert validation.measure(networks.generator, nothing, look)["accuracy"] >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "unet"}, "add --preset features"),
        ({"strategy": "grid_60"}, "with strategy grid_60; .* leave strategy out"),
        ({"target": "hog"}, "with target hog"),
        ({"layers": "masked", "fill": "smooth"}, "leave fill, layers out"),
        ({"adversarial": 0.1}, "with adversarial 0.1"),
        ({"region": "image"}, "with region image"),
        ({"exemplar_classes": 9}, "belongs to --pretext exemplar"),
        ({"pretext": "exemplar", "exemplar_classes": 9}, "at least batch_size 64"),
        ({"pretext": "exemplar", "exemplar_classes": 0}, "must be 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig(**{"preset": "features", "pretext": "relative_position", **changes})


def test_what_says_nothing_new_is_taken() -> None:
    usual = PretrainConfig(preset="features", pretext="relative_position")
    given = replace(usual, layers="dense", adversarial=0.0)
    assert resolve_recipe(given) == resolve_recipe(usual)
    assert settings_in_key(given) == settings_in_key(usual)


def test_keys_of_features_stay() -> None:
    """By the code of 2026-11-29, whose decoder first began with one value: AdamW, random start."""
    manifest: Any = SimpleNamespace(mean_rgb=(120.5, 111.25, 99.0), fingerprint="0" * 64)
    dense: dict[str, Any] = {"steps": 1600, "seed": 3, "layers": "dense", "target": "pixels"}
    for changes, key in (
        ({}, "de1257bb3ae5ab478f22fa5c758ac4d1c65d42f965e2dc8260b815f1b079c5ef"),
        (dense, "006e9baff8713841e12afedd78c4dd75031d5267e26e7c542fbcfd82b4d1fad9"),
    ):
        config = PretrainConfig(preset="features", optimizer="adamw", init="random", **changes)
        assert pretrain_key(config, manifest) == key


def test_each_pretext_has_a_key_and_a_name_of_its_own(dataset: tuple[str, Manifest]) -> None:
    _, manifest = dataset
    made = [PretrainConfig(preset="features")]
    made += [PretrainConfig(preset="features", pretext=name, batch_size=4) for name in NAMES]  # type: ignore[arg-type]
    made.append(replace(made[2], exemplar_classes=9))
    assert len({pretrain_key(config, manifest) for config in made}) == 5
    whole = replace(made[2], exemplar_classes=manifest.rows("train"))
    assert pretrain_key(whole, manifest) == pretrain_key(made[2], manifest)
    shown = [resolve_recipe(config).about for config in made]
    assert shown[:3] == [
        "features, grid_60 holes", "features, relative position", "features, exemplar"
    ]  # fmt: skip
    assert LEARNED.keys() == PAPERS.keys() == {"inpainting", *NAMES}


def test_parameters_have_nothing_of_holes() -> None:
    config = PretrainConfig(preset="features", pretext="transformation", source="photos")
    found = effective(config, resolve_recipe(config), source="photos", use_gpu=False)
    assert found["pretext"] == "transformation" and found["layers"] == "dense"
    assert not {"strategy", "target", "fill", "region", "adversarial", "exemplar_classes"} & set(
        found
    )
    assert None not in found.values()


def test_a_model_says_what_it_answers() -> None:
    summary = {
        "preset": "features", "strategy": "grid_60", "pretext": "relative_position", "steps": 10,
        "batch_size": 4, "training_images": 20, "source": "photos",
        "validation": {"accuracy": 0.25, "accuracy_chance": 0.125, "loss": 1.5},
    }  # fmt: skip
    text = describe_model(summary)
    assert text.startswith("features, relative position, 10 steps of 4 on 20 images")
    assert "25.0%; by chance 12.5%" in text
    del summary["pretext"]  # of an earlier version
    assert about(summary) == "features, grid_60 holes"
    assert about(summary | {"encoder": "resnet18"}) == "features (resnet18), grid_60 holes"


def test_a_sweep_has_each_pretext_once_beside_its_holes() -> None:
    config = AblateConfig(
        strategies=("grid_40", "grid_60"), targets=("hog",), seeds=1, tasks=("knn",),
        pretexts=("inpainting", "relative_position", "exemplar"),
        pretrain=PretrainConfig(preset="features"),
    )  # fmt: skip
    found = arms(config)
    assert list(map(str, found)) == [
        "grid_40-0-hog", "grid_60-0-hog", "relative_position", "exemplar"
    ]  # fmt: skip
    trained = [pretraining(config, cell) for cell in cells(config, found, 100)]
    assert [each.pretext for each in trained] == ["inpainting"] * 2 + list(NAMES[:2])
    assert trained[2].strategy is None and trained[2].target is None
    assert curve_of("features", "exemplar") == "validation/accuracy"
    with pytest.raises(ValueError, match="without inpainting"):
        replace(config, pretexts=("exemplar",))
    with pytest.raises(ValueError, match="use --pretexts"):
        replace(config, pretrain=PretrainConfig(preset="features", pretext="exemplar"))


def test_our_rows_stand_below_the_quoted_ones_of_their_pretext() -> None:
    def score(mean: float) -> dict[str, Any]:
        return {"mean": mean, "std": None}

    models = [
        {"name": "ours", "kind": "model", "pretext": "relative_position"},
        {"name": "holes", "kind": "model"},
        {"name": "random", "kind": "random"},
        {"name": "unmeasured", "kind": "model"},
    ]
    sections = [
        {"task": "finetune", "rows": [
            {"model": "ours", "mAP": score(0.5)}, {"model": "holes", "mAP": score(0.52)},
            {"model": "random", "mAP": score(0.4)},
        ]},
        {"task": "segmentation", "rows": [{"model": "ours", "mIoU": score(0.2)}]},
    ]  # fmt: skip
    rows = report.transfer_rows({"models": models, "sections": sections})
    names = [cells[0] for cells, _ in rows]
    assert names[names.index("Doersch et al.") + 1] == "ours (ours)"
    assert names[names.index("context encoder") + 1] == "holes (ours)"
    assert names[-1] == "random (ours)" and "unmeasured (ours)" not in names
    assert rows[names.index("ours (ours)")] == (["ours (ours)", "50.0%", "n/a", "20.0%"], False)
    page = report._transfer({"models": models, "sections": sections})
    assert page.count("<tr class=quoted>") == len([one for one in rows if one[1]])
