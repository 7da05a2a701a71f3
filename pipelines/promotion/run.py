"""Register, judge, move the alias; or roll back; or explain.

Exit codes: 0 done, 3 refused by a gate, 4 the run or that of the champion was deleted, 1 another
mistake of the user, 2 a flag or file that cannot be read.
"""

import getpass
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.promotion import candidate, explain, gates
from pipelines.promotion.config import PromoteConfig
from pipelines.promotion.gates import Candidate, Gates, Verdict
from pipelines.runtime.progress import plain_console
from pipelines.storage import lease
from pipelines.storage.lease import LeaseBusyError
from pipelines.tracking import client, names, registry
from pipelines.tracking.registry import Version

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
REFUSED = 3  # exit code
GONE = 4  # exit code
LEASE_S = 60.0
WAIT_S = 180.0  # for another promotion to end
NONE = "none"
NETWORK_TAG = "network"  # of a version: what the model takes and gives


class GoneError(UserError):
    """What a promotion needs was deleted on the tracking server."""

    code = GONE


class Decision(NamedTuple):
    """What a promotion came to."""

    promoted: bool
    version: str | None
    verdicts: list[Verdict]
    text: str
    fills: bool = False
    """Whether the model fills holes, and not only gives features."""


def run_promotion(config: PromoteConfig) -> bool | None:
    """Do what was asked; a refusal ends the process with its own code.

    Returns:
        whether the new champion fills holes; None where nothing was promoted.
    """
    console = plain_console(soft_wrap=True)
    uri = client.tracking_uri(config.tracking_uri, config.store)
    client.require_there(uri)
    if config.explain is not None:
        plain_console(stderr=False, soft_wrap=True).print(explain.explain(uri, config.explain))
    elif config.rollback:
        console.print(roll_back(uri, config.name, config.store))
    elif config.run is not None:
        demanded = gates.read_gates(config.gates)
        decision = promote(
            uri, config.run, config.name, demanded, config.store,
            replace_missing=config.replace_missing_champion,
        )  # fmt: skip
        for verdict in decision.verdicts:
            console.print(str(verdict))
        console.print(decision.text)
        if not decision.promoted:
            sys.exit(REFUSED)
        return decision.fills
    return None


def promote(
    uri: str,
    run_id: str,
    name: str,
    demanded: Gates,
    store: str,
    *,
    replace_missing: bool = False,
) -> Decision:
    """Judge a run's model and make it champion if every gate holds.

    What speaks against the evidence itself (nothing measured, other weights, a pickle) is found
    before anything is registered. What fails only on quality stays registered as `candidate`.

    Raises:
        UserError: another promotion changed the champion meanwhile, or what a gate asks for could
            not be read.
        GoneError: the run was deleted; or that of the champion was for good, and `replace_missing`
            does not say that it may be replaced all the same.
    """
    names.require_name(name)
    if registry.run_facts(uri, run_id).deleted:
        raise GoneError(
            f"run is '{run_id}', which was deleted at {uri}; restore it (mlflow runs restore "
            f"--run-id {run_id}) or promote another; nothing was registered"
        )
    source = candidate.source_of(uri, run_id)
    model = candidate.collect(uri, run_id, source)
    sound = gates.integrity(model, demanded)
    if not all(verdict.passed for verdict in sound):
        text = _refusal(sound)
        registry.tag_run(uri, run_id, "promotion.refused", text)
        return Decision(False, None, sound, f"refused, nothing registered: {text}")
    with _alone(store, name) as lost:
        champion = registry.by_alias(uri, name, CHAMPION)
        _require_same_network(uri, champion, model)
        registry.ensure_name(uri, name)
        version = registry.ensure_version(uri, name, run_id, source, _origin(model))
        if champion is not None and champion.version == version.version:
            registry.delete_alias(uri, name, CANDIDATE)
            text = f"{name} version {version.version} is the champion already"
            return Decision(True, version.version, sound, text, model.fills)
        registry.set_alias(uri, name, CANDIDATE, version.version)
        theirs = _evidence_of_champion(uri, champion, replace_missing)
        verdicts = sound + gates.quality(model, theirs, demanded)
        if champion is not None and theirs is None:
            verdicts.append(
                Verdict("champion", True, f"the run of version {champion.version} is gone", "asked")
            )
        if not all(verdict.passed for verdict in verdicts):
            text = _refusal(verdicts)
            registry.tag_version(uri, version, _audit("refused", text))
            text = f"refused, {name} version {version.version} stays {CANDIDATE}: {text}"
            return Decision(False, version.version, verdicts, text)
        _require_champion(uri, name, champion, lost)
        _crown(uri, version, champion, verdicts)
    before = "none" if champion is None else f"version {champion.version}"
    text = f"promoted: {name} version {version.version} is champion; before: {before}"
    return Decision(True, version.version, verdicts, text, model.fills)


def _require_same_network(uri: str, champion: Version | None, model: Candidate) -> None:
    """Refuse to replace a champion by a model that takes or gives something else.

    Raises:
        UserError: it needs a name of its own.
    """
    if champion is None or champion.run_id == model.run_id:
        return
    theirs = champion.tags.get(NETWORK_TAG)
    if theirs is None:  # registered by an earlier version
        if registry.find_facts(uri, champion.run_id) is None:
            return
        theirs = candidate.network_of(uri, champion.source)
    if theirs and theirs != model.reads:
        raise UserError(
            f"name is '{champion.name}', whose champion is {theirs}; this model is {model.reads}, "
            "and whoever loads the one cannot use the other: nothing was registered; register it "
            f"under a name of its own, such as --name {champion.name}-{model.reads.split()[0]}"
        )


def _evidence_of_champion(
    uri: str, champion: Version | None, replace_missing: bool
) -> Candidate | None:
    """What is known of the champion; None where there is none, or one that may be replaced.

    Raises:
        GoneError: its run was deleted for good.
    """
    if champion is None:
        return None
    if registry.find_facts(uri, champion.run_id) is not None:
        return candidate.collect(uri, champion.run_id, champion.source)
    if replace_missing:
        return None
    raise GoneError(
        f"name is '{champion.name}', whose champion, version {champion.version}, was trained by "
        f"run '{champion.run_id}', which {uri} no longer has (mlflow gc removes deleted runs): "
        "nothing can be compared with it, and it stays. --replace-missing-champion replaces it "
        "without a comparison"
    )


def _crown(uri: str, version: Version, champion: Version | None, verdicts: list[Verdict]) -> None:
    """The audit trail first, the alias that matters last, so that a rerun can finish a half."""
    replaced = NONE if champion is None else champion.version
    passed = "; ".join(f"{v.gate}: {v.found}" for v in verdicts)
    audit = _audit("promoted", passed) | {"promotion.replaced": replaced}
    registry.tag_version(uri, version, audit)
    if champion is not None:
        registry.set_alias(uri, version.name, PREVIOUS, champion.version)
    registry.set_alias(uri, version.name, CHAMPION, version.version)
    registry.delete_alias(uri, version.name, CANDIDATE)


def _require_champion(
    uri: str, name: str, judged: Version | None, lost: Callable[[], bool]
) -> None:
    """Refuse when the champion is no longer the one that was looked at."""
    found = registry.by_alias(uri, name, CHAMPION)
    before, now = (NONE if version is None else version.version for version in (judged, found))
    if before != now or lost():
        raise UserError(
            f"name is '{name}', whose champion another promotion may be changing (version {before} "
            f"before, {now} now); this one has not changed it: give the command again"
        )


def roll_back(uri: str, name: str, store: str) -> str:
    """Make the previous champion the champion again; returns what happened.

    Raises:
        UserError: there is nothing to go back to, or another promotion changed the champion.
    """
    with _alone(store, name) as lost:
        champion = registry.by_alias(uri, name, CHAMPION)
        previous = registry.by_alias(uri, name, PREVIOUS)
        if champion and previous and previous.version == champion.version:  # one was killed halfway
            previous = _replaced_by(uri, champion)
        if champion is None or previous is None:
            raise UserError(
                f"name is '{name}', which has no previous champion at {uri}; nothing was changed"
            )
        _require_champion(uri, name, champion, lost)
        registry.set_alias(uri, name, CHAMPION, previous.version)
        earlier = _replaced_by(uri, previous)
        if earlier is None:
            registry.delete_alias(uri, name, PREVIOUS)
        else:
            registry.set_alias(uri, name, PREVIOUS, earlier.version)
        reason = f"back to version {previous.version}"
        registry.tag_version(uri, champion, _audit("rolled back", reason))
    return f"rolled back: {name} version {previous.version} is champion, not {champion.version}"


def _replaced_by(uri: str, version: Version) -> Version | None:
    """The champion before a version."""
    earlier = version.tags.get("promotion.replaced", NONE)
    return None if earlier == NONE else registry.by_number(uri, version.name, earlier)


@contextmanager
def _alone(store: str, name: str) -> Iterator[Callable[[], bool]]:
    """One promotion of a model at a time: aliases have no compare-and-set.

    The lease lies in the store. Promotions with different stores, such as local ones of two
    machines, do not see each other, whatever server they share: that the champion is read once more
    before its alias moves leaves them a short moment, and no guarantee.

    Yields:
        whether the lease is lost.

    Raises:
        UserError: another one does not end.
    """
    place = storage.join(storage.absolute(store), "promote", storage.content_key(name)[:16])
    try:
        claim = lease.acquire_patiently(
            place, lease.new_owner(), lease_s=LEASE_S, wait_s=WAIT_S, clock=time.time
        )
    except LeaseBusyError as busy:
        raise UserError(
            f"name is '{name}', which another promotion holds ({busy.owner}); nothing was "
            "changed, try again when it has ended"
        ) from None
    with lease.hold(claim, lease_s=LEASE_S) as lost:
        yield lost


def _refusal(verdicts: list[Verdict]) -> str:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return "; ".join(f"gate '{v.gate}': {v.found}, wanted {v.wanted}" for v in failed)


def _origin(model: Candidate) -> dict[str, str]:
    return {
        "weights_sha256": model.logged_sha256 or "",
        "dataset_fingerprint": model.dataset_fingerprint,
        "code": model.code,
        NETWORK_TAG: model.reads,
    }


def _audit(result: str, reason: str) -> dict[str, str]:
    return {
        "promotion.result": result,
        "promotion.reason": reason,
        "promotion.at": datetime.now(UTC).isoformat(timespec="seconds"),
        "promotion.by": f"{_user()}@{socket.gethostname()}",
    }


def _user() -> str:
    """Who promotes; a container may run as a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
