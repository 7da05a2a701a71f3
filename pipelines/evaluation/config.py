"""Settings of an evaluation."""

from dataclasses import dataclass, field
from typing import Literal

from ce_model.network_config import NetworkConfig
from pipelines.evaluation.settings import (
    BaselineSettings,
    DetectionSettings,
    FinetuneSettings,
    InpaintingSettings,
    ProbeSettings,
    RetrievalSettings,
    SegmentationSettings,
    TaskName,
    VocSettings,
)

KEY_VERSION = 2  # part of every key: raise it when the same settings measure differently


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure models: how well they fill holes and what their features are worth."""

    model: tuple[str, ...]
    """Models to compare: model folder, stage, MLflow run id, models:/name@alias, random,
    random-kmeans, autoencoder, supervised; label=REF names a row, and equal labels are repetitions
    of one row (trainings of other seeds), each measured with one of the seeds in turn."""
    data: tuple[str, ...]
    """Prepared datasets, class folders, folders of images, VOC or CamVid folders; a task runs on
    those it can use. Anything else that jobs/prepare.py reads is prepared first: archives, Parquet,
    lists, nested folders."""
    tasks: tuple[TaskName, ...] = ("inpainting", "linear", "knn")
    """What to measure."""
    store: str = "store"
    """Folder or s3:// URI for results and reports; with SQLite also the tracking."""
    seeds: tuple[int, ...] = (0,)
    """Each measurement is repeated with these seeds; tables show mean and standard deviation."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the processor computes in it."""
    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(preset="alexnet", output="full")
    )
    """Network of the rows random, random-kmeans, autoencoder and supervised."""
    baseline: BaselineSettings = field(default_factory=BaselineSettings)
    """Training of the rows autoencoder and supervised."""
    inpainting: InpaintingSettings = field(default_factory=InpaintingSettings)
    """Task inpainting."""
    frozen: ProbeSettings = field(default_factory=ProbeSettings)
    """Tasks linear and knn."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    """Task finetune."""
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    """Task detection."""
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    """Task segmentation."""
    voc: VocSettings = field(default_factory=VocSettings)
    """VOC folders."""
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    """Task retrieval."""
    cpus_per_task: int = 1
    """CPUs of one measurement; as many run at once as the cluster has room for."""
    report: str | None = None
    """Also write report.html and report.json to this folder."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""
    experiment: str = "context-encoder-evaluation"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything starts."""
        for name in ("model", "data", "tasks", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one --{name} value")
        for name in ("tasks", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; each must occur once, or it counts twice")
        if self.cpus_per_task < 1:
            raise ValueError(f"cpus_per_task is {self.cpus_per_task}; it must be 1 or more")
