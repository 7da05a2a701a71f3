"""The same steps under torchrun, under Ray Train, and as the whole pretraining job.

$ python -m benchmarks.ray_overhead --dataset store/prepare/KEY --batch-size 64 --threads 1

- torchrun: `benchmarks/rank_steps.py` on one batch in memory.
- Ray Train: the same function in the workers of Ray Train, on the same batch.
- job: jobs/pretrain.py with its stream, curves and checkpoints, without the time of validations;
  its batches are read from the dataset. Left out without --dataset.

Rounds alternate; the aim is at least 0.95 of torchrun.
"""

import argparse
import statistics
import tempfile
from typing import Any

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from benchmarks.rank_steps import Work, add_arguments, measure, work_of
from benchmarks.scale import torchrun
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.run import pretrain_model
from pipelines.runtime import cluster


def main() -> None:
    """Print the rates and their ratios to torchrun."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset")
    args = parser.parse_args()
    work = work_of(args)
    rates: dict[str, list[float]] = {}
    for number in range(args.rounds):
        found = {"torchrun": torchrun(work, args.ranks)["images_per_second"]}
        with cluster.connect():
            found["Ray Train"] = _ray_train(work, args.ranks)
            if args.dataset:
                found["job"] = _job(work, args.ranks, args.dataset, seed=number)
        for name, rate in found.items():
            rates.setdefault(name, []).append(rate)
        print(*(f"{name} {rate:.2f}" for name, rate in found.items()), "images/s", flush=True)
    base = statistics.median(rates["torchrun"])
    for name, each in rates.items():
        print(
            f"{name}: {statistics.median(each):.2f} images/s ({min(each):.2f} to {max(each):.2f}), "
            f"{statistics.median(each) / base:.3f} of torchrun"
        )


def _ray_train(work: Work, ranks: int) -> float:
    def train(settings: dict[str, Any]) -> None:
        found = measure(settings["work"])
        with tempfile.TemporaryDirectory() as folder:
            ray.train.report(found, checkpoint=ray.train.Checkpoint(folder))

    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            train,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(
                num_workers=ranks, resources_per_worker={"CPU": 0.5, "memory": 1}
            ),
            run_config=RunConfig(name="overhead", storage_path=folder),
        )
        metrics = trainer.fit().metrics
    assert metrics is not None
    return float(metrics["images_per_second"])


def _job(work: Work, ranks: int, dataset: str, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        summary = pretrain_model(
            PretrainConfig(
                store=folder,
                preset=work.preset,
                strategy="central" if work.preset == "inpaint" else "random_region",
                steps=work.steps,
                batch_size=work.batch_size,
                num_workers=ranks,
                threads_per_worker=work.threads,
                checkpoint_every=work.steps,
                validation_images=8,
                seed=seed,
            ),
            dataset,
        )
    return float(summary["images_per_second"])


if __name__ == "__main__":
    main()
