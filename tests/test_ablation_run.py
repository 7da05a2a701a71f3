"""A whole sweep with successive halving: what it compares, logs, and does not do twice."""

from pathlib import Path

import pytest

from pipelines import storage, tracking
from pipelines.ablation import run as ablation
from pipelines.ablation.config import AblateConfig
from pipelines.evaluation.inpainting import InpaintingSettings
from pipelines.pretrain import PretrainConfig


def config(source: str, store: Path) -> AblateConfig:
    return AblateConfig(
        strategies=("central",),
        adversarial=(0.0, 0.001, 0.01),
        seeds=2,
        source=source,
        store=str(store),
        tasks=("inpainting",),
        inpainting=InpaintingSettings(
            strategies=("central",), pictures=8, database=8, panel=2, baselines=("mean colour",)
        ),
        pretrain=PretrainConfig(
            preset="inpaint", bottleneck=32, steps=6, batch_size=8, validation_images=4
        ),
        rungs=(3,),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_halving_compares_equal_budgets_only_and_a_rerun_trains_nothing(
    dataset_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config(dataset_uri, tmp_path)
    found = ablation.sweep(wanted)
    (rung,) = found["rungs"]
    assert rung["steps"] == 3 and len(rung["kept"]) == 2
    by_steps = {steps: [c for c in found["cells"] if c["steps"] == steps] for steps in (3, 6)}
    assert len(by_steps[3]) == 6
    assert {cell["arm"] for cell in by_steps[6]} == set(rung["kept"])
    assert len(by_steps[6]) == 4
    compared = found["comparisons"][found["metric"]]
    assert {arm["arm"] for arm in compared["arms"]} == set(rung["kept"])
    assert found["verdict"] == compared["verdict"]
    assert all(cell["status"] == "done" and cell["seconds"] > 0 for cell in found["cells"])

    server = tracking.client(tracking.tracking_uri(None, wanted.store))
    experiment = tracking.experiment_id(server, wanted.experiment, wanted.store)
    (parent,) = server.search_runs([experiment], "tags.stage = 'ablation'")
    for name in ("verdict", "mlflow.note.content"):
        assert parent.data.tags[name] == found["verdict"]
    nested = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert len(server.search_runs([experiment], nested)) == len(found["cells"])

    page = storage.join(wanted.store, "ablate", found["key"][:16], "ablation.html")
    assert found["verdict"].encode() in storage.read_bytes(page)
    capsys.readouterr()
    again = ablation.sweep(wanted)
    assert capsys.readouterr().err.count(": skipped") == 2 * len(found["cells"])
    assert again["comparisons"] == found["comparisons"]
