"""An image of a source with the class that a label list gives it."""

from collections import Counter

from pipelines.prepare.normalise import Fault
from pipelines.prepare.sources.labels import AmbiguousLabel, Labels
from pipelines.prepare.sources.member import Member


def labelled(member: Member, labels: Labels | None, bare_names: Counter[str]) -> Member:
    """The image with class and split of the label list, which come before those of its place.

    Without a class from either it becomes a fault.

    Args:
        member: image or fault, as its source gives it.
        labels: the label list; None changes nothing.
        bare_names: counts how many images an entry without a folder named.
    """
    if labels is None:
        return member
    try:
        found = labels.of(member.key, member.split)
    except AmbiguousLabel as error:
        return member._replace(data=None, fault=Fault("missing_label", str(error)))
    split = labels.split_of(member.key)
    member = member if split is None else member._replace(split=split)
    if found is not None and not labels.by_number:
        entry = labels.entry(member.key)
        if entry is not None and labels.is_bare(entry):
            bare_names[entry] += 1
    if found is None and member.class_name is not None:
        return member
    if found is None and member.fault is None:
        fault = Fault("missing_label", "the label list does not name it")
        return member._replace(data=None, fault=fault)
    return member._replace(class_name=found)
