"""The training stream: the same batches for any number of workers and from any step."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import storage
from pipelines.data import stream, stream_plan
from pipelines.data.manifest import read_manifest
from pipelines.data.shards import read_row_group, row_groups
from pipelines.data.stream_plan import StreamPlan
from pipelines.errors import UserError
from pipelines.runtime import cluster, ray_internals

BATCH = 8


def make_plan(uri: str, **changes: Any) -> StreamPlan:
    plan = StreamPlan(
        uri=uri,
        manifest=read_manifest(uri),
        strategy="random_block",
        side=128,
        shorter=0,
        batch_size=BATCH,
        num_workers=1,
        steps=45,
        seed=3,
        window_rows=40,
    )
    return replace(plan, **changes)


def global_batches(plan: StreamPlan, start_step: int = 0) -> dict[int, dict[str, Any]]:
    """What W consumers of the real stream receive, put together by step in rank order."""

    @ray.remote(num_cpus=0.1)
    def consume(shard: Any) -> list[dict[str, Any]]:
        return list(stream.batches(shard, plan))

    shards = stream.stream(plan, start_step).streaming_split(plan.num_workers, equal=True)
    received = ray.get([consume.remote(shard) for shard in shards])
    steps: dict[int, list[dict[str, Any]]] = {}
    for batches in received:
        for batch in batches:
            assert len(set(batch["step"])) == 1
            steps.setdefault(int(batch["step"][0]), []).append(batch)
    return {
        step: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for step, parts in steps.items()
    }


def assert_equal(left: dict[int, dict[str, Any]], right: dict[int, dict[str, Any]]) -> None:
    assert left.keys() == right.keys()
    for step, batch in left.items():
        for name, values in batch.items():
            np.testing.assert_array_equal(values, right[step][name], err_msg=f"{step} {name}")


@pytest.fixture(scope="module")
def reference(dataset_uri: str) -> dict[int, dict[str, Any]]:
    return global_batches(make_plan(dataset_uri))


@pytest.mark.parametrize("workers", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_workers(
    workers: int, dataset_uri: str, reference: dict[int, dict[str, Any]]
) -> None:
    assert_equal(global_batches(make_plan(dataset_uri, num_workers=workers)), reference)


@pytest.mark.parametrize("start", [17, 44])
def test_a_stream_that_starts_later_continues_with_the_same_batches(
    start: int, dataset_uri: str, reference: dict[int, dict[str, Any]]
) -> None:
    later = global_batches(make_plan(dataset_uri, num_workers=2), start_step=start)
    assert_equal(later, {step: batch for step, batch in reference.items() if step >= start})


@pytest.mark.parametrize("steps", [45, 40])  # in the middle of a window, and at its end
def test_a_stream_with_nothing_left_is_empty(steps: int, dataset_uri: str) -> None:
    plan = make_plan(dataset_uri, num_workers=2, steps=steps)
    assert global_batches(plan, start_step=steps) == {}


def test_the_keys_of_a_batch_are_named_without_reading_it(
    dataset_uri: str, reference: dict[int, dict[str, Any]]
) -> None:
    keys: list[str] = []
    for group in row_groups(read_manifest(dataset_uri), "train"):
        keys += read_row_group(dataset_uri, group, ["key"]).column("key").to_pylist()
    for workers in (1, 2):
        plan = make_plan(dataset_uri, num_workers=workers)
        for step in (0, 4, 5, 44):  # in the first windows and in the last
            assert stream.keys_of(plan, step) == [keys[at] for at in reference[step]["row"]]


@pytest.mark.parametrize("window_rows", [1, 24, 40, 10_000])
def test_windows_hold_each_step_once_and_in_order(window_rows: int, dataset_uri: str) -> None:
    plan = make_plan(dataset_uri, window_rows=window_rows)
    found = list(stream_plan.windows(plan))
    steps = [w.first_step + batch for w in found for batch in range(w.batches)]
    assert steps[: plan.steps] == list(range(plan.steps))
    assert steps[-found[-1].batches] < plan.steps  # the last window is needed
    for step in range(plan.steps):
        held = found[stream_plan.window_of(plan, step)]
        assert held.first_step <= step < held.first_step + held.batches


@pytest.mark.parametrize("cpus", [1, 16])
def test_a_damaged_image_is_told_as_damage_of_the_dataset(
    cpus: int, dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "node_cpus", lambda: cpus)  # threads or none
    uri = str(shutil.copytree(dataset_uri, tmp_path / "damaged"))
    for shard in Path(uri, "train").glob("*.parquet"):
        data = shard.read_bytes()
        shard.write_bytes(data.replace(b"\xff\xda", b"\xff\xd9"))  # no scan in any image
    with pytest.raises(UserError, match=r"damaged' does not hold what its manifest says \(an im"):
        next(stream.read_window(make_plan(uri), stream_plan.window(make_plan(uri), 0)))


def test_another_file_in_the_place_of_a_shard_is_told_as_damage_of_the_dataset(
    dataset_uri: str, tmp_path: Path
) -> None:
    uri = str(shutil.copytree(dataset_uri, tmp_path / "replaced"))
    group = row_groups(read_manifest(uri), "train")[0]
    place = Path(uri, group.file.path)
    pq.write_table(pq.read_table(place), place, row_group_size=group.rows)  # of the same shape
    with pytest.raises(UserError, match=rf"bytes, the manifest has {group.file.bytes}\)"):
        read_row_group(uri, group, ["key"])


def test_a_page_that_cannot_be_read_is_damage_unless_the_file_is_as_it_was(
    dataset_uri: str, tmp_path: Path
) -> None:
    uri = str(shutil.copytree(dataset_uri, tmp_path / "rotten"))
    manifest = read_manifest(uri)
    group = row_groups(manifest, "train")[0]
    place, column = Path(uri, group.file.path), manifest.masks[0].column
    chunks = pq.ParquetFile(place).metadata.row_group(group.index)
    chunk = next(
        chunk
        for chunk in map(chunks.column, range(chunks.num_columns))
        if chunk.path_in_schema == column
    )
    data = bytearray(place.read_bytes())
    page = slice(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size)
    data[page] = b"\x55" * chunk.total_compressed_size
    place.write_bytes(data)
    with pytest.raises(UserError, match=rf"what its manifest says \({group.file.path}: "):
        read_row_group(uri, group, [column])
    whole = replace(group.file, sha256=storage.sha256_of(place))
    with pytest.raises(OSError):  # as when bytes change on their way from a bucket
        read_row_group(uri, replace(group, file=whole), [column])


def test_each_number_is_a_task_and_all_share_one_object(ray_cluster: None) -> None:
    found = ray_internals.number_dataset(3, 40)
    (refs,) = {tuple(bundle.block_refs) for bundle in found.iter_internal_ref_bundles()}
    assert len(refs) == 1
    seen = found.map_batches(lambda block: {"of_a_task": [block[ray_internals.COLUMN].tolist()]})
    tasks = sorted(row["of_a_task"] for row in seen.take_all())
    assert tasks == [[number] for number in range(3, 40)]


def test_every_image_comes_at_most_once_per_epoch_and_less_than_a_batch_is_left_out(
    dataset_uri: str, reference: dict[int, dict[str, Any]]
) -> None:
    plan = make_plan(dataset_uri)
    assert sorted(reference) == list(range(plan.steps))
    left_out = []
    for first in range(0, plan.steps - plan.steps_per_epoch + 1, plan.steps_per_epoch):
        epoch = range(first, first + plan.steps_per_epoch)
        rows = np.concatenate([reference[step]["row"] for step in epoch])
        assert len(set(rows)) == len(rows)
        left_out.append(set(range(plan.rows)) - set(rows))
        assert len(left_out[-1]) == plan.rows % BATCH < BATCH
    assert left_out[0] != left_out[1]  # an image left out once is not left out for ever


def test_neighbours_in_a_file_are_no_neighbours_in_the_stream(
    dataset_uri: str, reference: dict[int, dict[str, Any]]
) -> None:
    epoch = range(make_plan(dataset_uri).steps_per_epoch)
    rows = np.concatenate([reference[step]["row"] for step in epoch])
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.15


def test_epochs_and_seeds_change_order_crops_and_holes(
    dataset_uri: str, reference: dict[int, dict[str, Any]]
) -> None:
    plan = make_plan(dataset_uri)
    by_row: dict[int, list[tuple[bytes, bytes, int]]] = {}
    for batch in reference.values():
        for row, image, mask, augment in zip(
            batch["row"], batch["image"], batch["mask"], batch["augment"], strict=True
        ):
            by_row.setdefault(int(row), []).append((image.tobytes(), mask.tobytes(), int(augment)))
    twice = [seen for seen in by_row.values() if len(seen) >= 2]
    assert len(twice) > 100
    assert sum(first == second for first, second, *_ in twice) < len(twice) / 20
    other = next(stream.read_window(replace(plan, seed=4), stream_plan.window(plan, 0)))
    assert list(other["row"]) != list(reference[0]["row"])


def test_crop_and_hole_of_an_image_follow_from_seed_epoch_and_key(dataset_uri: str) -> None:
    plan = make_plan(dataset_uri)
    other_seed = replace(plan, seed=4)
    draws = [
        stream_plan.Draw.of(*of)
        for of in ((plan, 0, "a"), (other_seed, 0, "a"), (plan, 1, "a"), (plan, 0, "b"))
    ]
    assert stream_plan.Draw.of(plan, 0, "a") == draws[0]
    for name in ("down", "across", "variant"):
        assert len({getattr(draw, name) for draw in draws}) == 4


def test_crops_variants_symmetries_and_flips_are_drawn_from_all_there_are(
    dataset_uri: str,
) -> None:
    plan = make_plan(dataset_uri)
    spec = plan.manifest.mask_spec("random_block", 128)
    stored = {}
    for group in row_groups(plan.manifest, "train"):
        table = read_row_group(plan.uri, group, ["image", spec.column])
        for at, record in enumerate(table.to_pylist()):
            stored[group.first_row + at] = record
    variants, augments, down, across = set(), set(), [], []
    for number in range(plan.windows_per_epoch):
        for batch in stream.read_window(plan, stream_plan.window(plan, number)):
            for slot, row in enumerate(batch["row"]):
                record = stored[int(row)]
                variants.add(record[spec.column].index(batch["mask"][slot].tobytes()))
                augments.add(int(batch["augment"][slot]))
                image = stream.images.decode(record["image"])
                views = np.lib.stride_tricks.sliding_window_view(image, (128, 128), (0, 1))
                crop = batch["image"][slot].transpose(2, 0, 1)
                alike = (views[..., ::9, ::9] == crop[:, ::9, ::9]).all(axis=(2, 3, 4))
                ((top, left),) = (at for at in np.argwhere(alike) if (views[*at] == crop).all())
                down.append(top / (image.shape[0] - 128))
                across.append(left / (image.shape[1] - 128))
    assert variants == {variant * spec.bytes_per_mask for variant in range(spec.variants)}
    assert augments == set(range(2 * stream.FLIP))
    for place in (down, across):
        assert min(place) < 0.05 and max(place) > 0.95
        assert 0.4 < np.mean(place) < 0.6


def test_images_masks_and_labels_of_a_row_belong_together(dataset_uri: str) -> None:
    plan = make_plan(dataset_uri, augment=False)
    spec = plan.manifest.mask_spec("random_block", 128)
    stored = {}
    for group in row_groups(plan.manifest, "train"):
        table = read_row_group(plan.uri, group, ["label", "image", spec.column])
        for at, record in enumerate(table.to_pylist()):
            stored[group.first_row + at] = record
    for batch in stream.read_window(plan, stream_plan.window(plan, 0)):
        for slot, row in enumerate(batch["row"]):
            record = stored[int(row)]
            assert batch["label"][slot] == record["label"]
            assert batch["mask"][slot].tobytes() == record[spec.column][: spec.bytes_per_mask]
            image = stream.images.decode(record["image"])
            expected = stream.images.square(image, 128, 0, 0.5, 0.5)
            np.testing.assert_array_equal(batch["image"][slot], expected)


def test_validation_images_are_the_same_however_they_are_shared(dataset_uri: str) -> None:
    plan = make_plan(dataset_uri)
    image, mask = stream.read_fixed_images(plan, "val", 15)
    assert len(image) == len(mask) == 15
    for part in range(4):
        some_images, some_masks = stream.read_fixed_images(plan, "val", 15, (part, 4))
        np.testing.assert_array_equal(some_images, image[part::4])
        np.testing.assert_array_equal(some_masks, mask[part::4])


def test_validation_sees_the_centre_of_the_first_images_and_their_first_hole(
    dataset_uri: str,
) -> None:
    plan = make_plan(dataset_uri)
    spec = plan.manifest.mask_spec("random_block", 128)
    group = row_groups(plan.manifest, "val")[0]
    records = read_row_group(plan.uri, group, ["image", spec.column]).to_pylist()
    images = stream.read_fixed_images(plan, "val", 3)
    for image, mask, record in zip(*images, records[:3], strict=True):
        assert mask.tobytes() == record[spec.column][: spec.bytes_per_mask]
        centre = stream.images.square(stream.images.decode(record["image"]), 128, 0, 0.5, 0.5)
        np.testing.assert_array_equal(image, centre)


def test_a_batch_that_cannot_be_filled_or_shared_is_refused(dataset_uri: str) -> None:
    with pytest.raises(UserError, match="multiple of num_workers 3"):
        make_plan(dataset_uri, num_workers=3)
    with pytest.raises(UserError, match="only 150 training images"):
        make_plan(dataset_uri, batch_size=200)
    with pytest.raises(UserError, match="no column mask_central_64"):
        stream.stream(make_plan(dataset_uri, side=64, strategy="central"))


def test_several_threads_decode_the_same_batches(
    dataset_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(dataset_uri)
    found = []
    for cpus in (1, 16):
        monkeypatch.setattr(cluster, "node_cpus", lambda cpus=cpus: cpus)
        assert stream._threads() == max(1, cpus // 4)
        batches = list(stream.read_window(plan, stream_plan.window(plan, 0)))
        found.append({int(batch["step"][0]): batch for batch in batches})
    assert_equal(*found)
