"""Write `index.html`, and give the folders of trainings names beside their keys."""

import os
import re
from contextlib import suppress

from pipelines import storage
from pipelines.store_page.find import Contents, find_contents
from pipelines.store_page.page import KEY_LETTERS, name_of, page

PAGE = "index.html"
BY_NAME = "by-name"


def write_store_page(store: str) -> str:
    """Rewrite STORE/index.html, in one step; returns its URI.

    In a local store `by-name/` gets a link to each finished training, called after what it is:
    `2026-11-28-unet-free_form-photos-1a2b3c4d`.

    Raises:
        OSError, UserError: the store cannot be read or written.
    """
    home = storage.absolute(store)
    contents = find_contents(home)
    uri = storage.join(home, PAGE)
    storage.publish(uri, page(contents, home).encode())
    if storage.is_local(home):
        _link_by_name(home, contents)
    return uri


def _link_by_name(home: str, contents: Contents) -> None:
    folder = storage.local_path(home) / BY_NAME
    named = {link.name.rpartition("-")[2] for link in folder.glob("*")}
    for training in contents.trainings:
        if not training.summary or training.key[:KEY_LETTERS] in named:
            continue
        words = name_of(training, contents).replace(" holes on ", " ").rpartition(",")[0]
        name = re.sub(r"[^\w.-]+", "-", words).strip("-")
        link = folder / f"{training.at:%Y-%m-%d}-{name}-{training.key[:KEY_LETTERS]}"
        folder.mkdir(exist_ok=True)
        with suppress(FileExistsError):  # another job was first
            link.symlink_to(os.path.join("..", "pretrain", training.key))
