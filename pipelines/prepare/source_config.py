"""What a person can say of images that are read: where they are, their splits and classes."""

from dataclasses import dataclass
from typing import Literal

from pipelines.errors import UserError, redact
from pipelines.prepare.sources.layout import ClassFrom, Rules


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The flags that `prepare` and `embed` share; a base class, since a group would rename them."""

    source: tuple[str, ...] | str
    """Folders, archives, Parquet files, a list of images, or a prepared dataset (to which prepare
    adds masks); braces and globs name several, as in 'shards/train-{000..146}.tar'."""
    train: tuple[str, ...] = ()
    """What is for training where names do not say it: paths or globs below the source."""
    val: tuple[str, ...] = ()
    """What is for validation, likewise."""
    class_from: ClassFrom | None = None
    """What names the class of an image: the folder right above it, the first one below its split,
    its file name up to the number, or nothing; when left out see docs/prepare.md."""
    labels: str | None = None
    """List of labels, `NAME LABEL` per line or with a header; it comes before what places say."""
    class_list: str | None = None
    """File with a class name per line, for integer labels in `labels`."""
    label_base: Literal[0, 1] | None = None
    """What the places in `class_list` are counted from, where the labels do not tell."""

    def __post_init__(self) -> None:
        """Refuse a source that is none."""
        if not self.sources or not all(source.strip() for source in self.sources):
            raise UserError(f"--source is '{self.shown_source}'; it must be a folder, file or URI")

    @property
    def sources(self) -> tuple[str, ...]:
        """One or several places."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def shown_source(self) -> str:
        """The source as it is typed, without user, password and signature."""
        return redact(" ".join(self.sources))

    @property
    def rules(self) -> Rules:
        """What was said of splits and classes."""
        return Rules(tuple(self.train), tuple(self.val), self.class_from)
