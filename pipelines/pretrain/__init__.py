"""Pretraining on Ray Train: config, worker, checkpoints, and the run that ties them."""

from pipelines.pretrain.config import PretrainConfig, pretrain_key
from pipelines.pretrain.run import run

__all__ = ["PretrainConfig", "pretrain_key", "run"]
