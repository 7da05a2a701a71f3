"""What the runs and registered models of a tracking server still refer to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.tracking.client import client, is_there
from pipelines.tracking.runs import KEY_TAG

PAGE = 1000


@dataclass(frozen=True)
class References:
    """By the keys and fingerprints that our runs carry; deleted runs refer to nothing."""

    datasets: frozenset[str]
    """Fingerprints and folder names of the datasets of all runs; those that were added to since
    have another fingerprint, and the same name."""
    registered: frozenset[str]
    """Pipeline keys of the runs whose models are registered, with an alias or without."""


def references(uri: str) -> References:
    """Ask a server for everything that refers to a store; a file that is not there knows nothing.

    Raises:
        MlflowException: it does not answer, so that nobody knows.
    """
    if not is_there(uri):
        return References(frozenset(), frozenset())
    server = client(uri)
    keys, datasets = {}, set()
    experiments = [each.experiment_id for each in _all(server.search_experiments)]
    for run in _all(partial(server.search_runs, experiments)):
        keys[run.info.run_id] = run.data.tags.get(KEY_TAG, "")
        datasets.add(run.data.tags.get("dataset_fingerprint", ""))
        inputs = run.inputs.dataset_inputs if run.inputs else []
        datasets |= {str(each.dataset.name) for each in inputs}
    registered = {keys.get(version.run_id, "") for version in _all(server.search_model_versions)}
    return References(frozenset(datasets - {""}), frozenset(registered - {""}))


def _all(search: Callable[..., Any]) -> Iterator[Any]:
    """What a search of MLflow finds, page by page."""
    found = search(max_results=PAGE)
    yield from found
    while found.token:
        found = search(max_results=PAGE, page_token=found.token)
        yield from found
