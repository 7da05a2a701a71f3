"""The models of a replica: loaded, looked up by name, and renewed when an alias moves."""

import logging
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

from pipelines import storage
from pipelines.errors import UserError
from pipelines.models import files
from pipelines.models.files import LoadedModel
from pipelines.models.resolve import resolve_model, resolve_named
from pipelines.tracking import client, registry

ALIAS = re.compile(r"models:/([^/@]+)@([^/@]+)")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A model and where it comes from."""

    name: str
    reference: str
    model: LoadedModel
    version: str | None
    """Of a registered model with an alias."""
    loaded_at: float

    def describe(self) -> dict[str, Any]:
        """The answer of GET /models."""
        info = self.model.info
        return {
            "name": self.name,
            "kind": "model",
            "reference": self.reference,
            "version": self.version,
            "preset": self.model.network.preset,
            "output": self.model.network.output,
            "side": self.model.side,
            "strategy": info.get("strategy"),
            "steps": info.get("steps"),
            "weights_sha256": info["weights_sha256"],
            "loaded_at": round(self.loaded_at),
        }


class ServedModels:
    """All models of a replica. A renewed one takes the place of the old one between two batches."""

    def __init__(self, references: tuple[str, ...], store: str, tracking_uri: str | None) -> None:
        """Load every model.

        Raises:
            UserError: a reference names no model, or two have one name.
        """
        self._store = store
        self._uri = client.tracking_uri(tracking_uri, store)
        self._by_name: dict[str, Served] = {}
        self.failed_reloads = 0
        for reference in references:
            name, rest = name_of(reference)
            if name in self._by_name:
                raise UserError(
                    f"model '{name}' is given twice; give each model a name of its own: "
                    f"--model first={rest} second=..."
                )
            self._by_name[name] = self._load(name, rest)
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """In the order in which they were given; the first is the default."""
        return list(self._by_name)

    def get(self, name: str) -> Served | None:
        """The model of that name as it is now."""
        return self._by_name.get(name)

    def describe(self) -> list[dict[str, Any]]:
        """Every model."""
        return [served.describe() for served in self._by_name.values()]

    def refresh(self) -> list[str]:
        """Load what an alias names now; returns the names of the models that changed.

        A model that cannot be looked up or loaded stays as it is, and is tried again next time.
        """
        changed = []
        with self._lock:
            for name, served in list(self._by_name.items()):
                if not ALIAS.fullmatch(served.reference):
                    continue
                try:
                    if self._version(served.reference) == served.version:
                        continue
                    self._by_name[name] = self._load(name, served.reference)
                except (UserError, OSError) as error:
                    self.failed_reloads += 1
                    logger.warning("model %s stays as it is: %s", name, error)
                    continue
                changed.append(name)
        return changed

    def _load(self, name: str, reference: str) -> Served:
        version = self._version(reference)
        found = resolve_model(reference, store=self._store, tracking_uri=self._uri)
        model = files.load_model(found.uri)
        model.generator.to("cuda" if torch.cuda.is_available() else "cpu")
        return Served(name, reference, model, version, time.time())

    def _version(self, reference: str) -> str | None:
        named = ALIAS.fullmatch(reference)
        if named is None:
            return None
        client.require_there(self._uri)
        version = registry.by_alias(self._uri, named[1], named[2])
        if version is None:
            raise UserError(f"model is '{reference}', and {self._uri} has no such alias")
        return version.version


def name_of(reference: str) -> tuple[str, str]:
    """Name and reference of a `--model` value: a registered model is called after itself."""
    label, rest = resolve_named(reference)
    named = ALIAS.fullmatch(rest)
    return (named[1] if named and label == rest.split("/")[-1] else label), rest


def newest_model(store: str) -> str:
    """The pretraining stage of a store that was finished last.

    Raises:
        UserError: there is none.
    """
    folder = storage.join(storage.absolute(store), "pretrain")
    found: list[tuple[float, str]] = []
    if storage.is_local(folder):
        root = storage.local_path(folder)
        marks = root.glob(f"*/model/{files.MODEL}") if root.is_dir() else ()
        found = [(mark.stat().st_mtime, str(mark.parents[1])) for mark in marks]
    if not found:
        raise UserError(
            f"model is not given, and store '{store}' holds no trained one; train one with "
            "`make run`, or give --model"
        )
    return max(found)[1]
