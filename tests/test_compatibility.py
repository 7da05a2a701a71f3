"""What the code of 0.1 (commit ce06a1f) wrote and named is still read and named the same.

`tests/earlier/dataset` was prepared by that commit from eight drawn images; the keys below were
computed by it for that dataset.
"""

import importlib
from pathlib import Path

import pytest
from helpers import ROOT

from pipelines.data.manifest import read_manifest
from pipelines.data.shards import read_row_group, row_groups
from pipelines.evaluation import plan
from pipelines.evaluation.config import EvaluateConfig
from pipelines.models.resolve import untrained_ref
from pipelines.prepare.verify import InspectConfig, inspect_dataset
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import pretrain_key

DATASET = str(ROOT / "tests" / "earlier" / "dataset")
PRETRAIN_KEYS = {
    "be17f0dbb579fb5673288b996c549a4f06f69604aac0723222cbdbb1906aa2b3": PretrainConfig(),
    "9940df0b929b4e05cda98762bd45c703132c301cdd72a6247f1ad15889670cb0": PretrainConfig(
        preset="alexnet", steps=100, seed=3
    ),
    "966fba989942dbfec2c36eefcc058ad11d6cc65d253ed94409d7b7bf88112405": PretrainConfig(
        reconstruction="l1", learning_rate=0.0003, adversarial=0.0
    ),
}
EVALUATION_STAGES = {
    "linear": "8403f0ed132f1295",
    "knn": "28abd6788e2dc2e2",
    "finetune": "eafc4bef8238b730",
    "retrieval": "2910fa6d45227575",
}


def test_a_dataset_of_the_earlier_version_is_whole_and_read() -> None:
    manifest = read_manifest(DATASET)
    assert manifest.fingerprint.startswith("817ac52beb079b33")
    assert manifest.classes == ("apple", "pear")
    assert [manifest.rows(split) for split in ("train", "val")] == [6, 2]
    inspect_dataset(InspectConfig(dataset=DATASET, verify=True))
    columns = ["key", "label", "image", "mask_central_32"]
    keys = [
        row["key"]
        for group in row_groups(manifest, "train")
        for row in read_row_group(DATASET, group, columns).to_pylist()
    ]
    assert sorted(keys) == [f"train/{c}/{n}.jpg" for c in ("apple", "pear") for n in range(3)]


@pytest.mark.parametrize("key", PRETRAIN_KEYS)
def test_a_training_has_the_key_that_it_had(key: str) -> None:
    assert pretrain_key(PRETRAIN_KEYS[key], read_manifest(DATASET)) == key


def test_a_measurement_has_the_stage_that_it_had(tmp_path: Path) -> None:
    config = EvaluateConfig(
        model=("random",),
        data=(DATASET,),
        tasks=("linear", "knn", "finetune", "retrieval"),
        precision="fp32",
        store=str(tmp_path),
    )
    layouts = plan.layouts_of(config)
    subject = untrained_ref("random", "random", config.network)
    jobs = plan.jobs_of([(subject, 0)], config, layouts, plan.fingerprints_of(config, layouts))
    assert {job.task: Path(job.uri).name for job in jobs} == EVALUATION_STAGES


def test_models_logged_before_find_what_they_import() -> None:
    weights = importlib.import_module("pipelines.weights")
    assert weights.load_model is importlib.import_module("pipelines.models.files").load_model
