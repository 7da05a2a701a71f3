"""A part of a source that one task reads."""

from typing import Any, Literal, NamedTuple

UNKNOWN = -1  # size of an image that only a list names


class Piece(NamedTuple):
    """A part of a source that one task reads. There are millions: a tuple is quick to store."""

    kind: Literal["file", "tar", "parquet"]
    uri: str
    key: str
    """Of a file: its key. Else what stands before the keys of its images."""
    bytes: int
    split: str | None = None
    """`train` or `val` where the source says so."""
    class_name: str | None = None
    begin: int = 0
    """First byte of a tar's range, or of a zip's directory; first row group."""
    end: int = 0
    """Last row group + 1; end of a zip's part of the directory; see `ranges.Range`."""
    layout: list[Any] | None = None
    """Of an archive: the `Layout` of what is in it; see `placing`."""
    folder: str = ""
    """Of an archive: the folder of the tree that its root is."""
    differs: bool = False
    """Whether the layout places a member elsewhere than its innermost folder says, which was the
    whole rule once: then it is a part of the identity of the piece."""
