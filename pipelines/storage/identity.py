"""What tells one store from another, wherever it is mounted, moved to or copied."""

import uuid
from contextlib import suppress

from pipelines.storage.objects import absolute, exists, is_folder, join, publish_json, read_json

FILE = "store.json"


def find_store_id(store: str) -> str | None:
    """The id that a store carries; None where it has none yet."""
    uri = join(absolute(store), FILE)
    return str(read_json(uri)["id"]) if exists(uri) else None


def ensure_store_id(store: str) -> str | None:
    """The id of a store, which gets one if it has none; None where there is no store yet."""
    if (found := find_store_id(store)) is not None:
        return found
    if not is_folder(absolute(store)):
        return None
    uri = join(absolute(store), FILE)
    with suppress(FileExistsError):  # another job was first
        publish_json(uri, {"id": uuid.uuid4().hex}, exclusive=True)
    return find_store_id(store)
