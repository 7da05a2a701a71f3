"""What is known only when all is read, and ends the job before anything is written.

A streamed archive shows its folders as it is read: names alone place its images, and here the rule
for the whole source is held against that. A label list may name two images by one name. And a
dataset that is added to may hold images with a class that they have lost, or in another split.
"""

from collections import Counter

from pipelines import storage
from pipelines.errors import UserError, counted
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.fault_budget import SourceTotals
from pipelines.prepare.plan import Plan
from pipelines.prepare.progress import console
from pipelines.prepare.source_config import SourceConfig
from pipelines.prepare.sources import patterns
from pipelines.prepare.sources.layout import Layout, Place, place
from pipelines.prepare.sources.survey import survey


def check(config: PrepareConfig, planned: Plan, totals: SourceTotals, uri: str) -> None:
    """Refuse what would be wrong in silence.

    Raises:
        UserError: with what was seen, and how to say it.
    """
    check_folders(config, Counter(planned.folders), totals.folders)
    check_names(config, totals.bare_names)
    _check_held(totals, uri)


def check_folders(config: SourceConfig, listed: Counter[str], streamed: Counter[str]) -> None:
    """Refuse where all folders together place an image elsewhere than its own name did.

    Args:
        config: what was said of the source.
        listed: images by folder, as known before anything was read.
        streamed: those by folder in archives that were read as streams.

    Raises:
        UserError: with what was seen, and how to say it.
    """
    if not streamed:
        return
    together = listed + streamed
    roots = patterns.roots(tuple(map(storage.absolute, config.sources)))
    surveyed = survey(config.shown_source, together, config.rules, roots)
    guess = Layout(rules=config.rules, guessed=True, splits=surveyed.layout.splits)
    other = "parent" if config.rules.class_from == "first" else "parent or first"
    for folder in streamed:
        folders = tuple(folder.split("/")) if folder else ()
        guessed, found = (place(rule, folders, "") for rule in (guess, surveyed.layout))
        if config.rules.class_from == "name":
            continue
        if (guessed.split, guessed.class_name) != (found.split, found.class_name):
            raise UserError(
                f"--source is '{config.shown_source}'; the folder '{folder}' in a streamed archive "
                f"was taken for {_said(guessed)}, and beside all others it is {_said(found)}. Say "
                f"it with --class-from {other}, with --train and --val, or unpack the "
                "archive"
            )
    for note in surveyed.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _said(where: Place) -> str:
    split = f"{where.split}, " if where.split else ""
    return f"{split}class '{where.class_name}'" if where.class_name else f"{split}no class"


def check_names(config: SourceConfig, bare_names: Counter[str]) -> None:
    """Refuse a label list that names two images by one name.

    Raises:
        UserError: with the name.
    """
    for name, count in bare_names.most_common(1):
        if count > 1:
            raise UserError(
                f"--labels is '{config.labels}'; it names '{name}', and {count} images of the "
                "source have that name. Give names with folders, such as train/"
                f"{name}"
            )


def _check_held(totals: SourceTotals, uri: str) -> None:
    """Refuse a class that is lost; tell of another split."""
    if "class" in totals.conflicts:
        count, first = totals.conflicts["class"]
        raise UserError(
            f"--output is '{uri}', which holds {counted(count, 'image')} of this source with a "
            f"class that this command gives none, such as '{first.key}': '{first.held}' there. "
            "Nothing was changed: give the --labels or the --class-from that names it, or prepare "
            "into another --output"
        )
    if "split" in totals.conflicts:
        count, first = totals.conflicts["split"]
        console.print(
            f"warning: {counted(count, 'image')} of this source in another split than the dataset "
            f"has, such as '{first.key}': {first.held} there, {first.now} now. A dataset keeps the "
            "split of its images; to change it prepare into another --output",
            soft_wrap=True,
        )
