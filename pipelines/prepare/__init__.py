"""Stage: any source of pictures -> a committed dataset in the shard contract.

    config.py    what a person can ask of the job
    run.py       the job: plan, gather, judge the faults, write shards, commit
    sources.py   what a source holds: pieces of it, each a file, an archive or a range of one
    tars.py  columns.py  labels.py     the formats of archives, tables and label lists
    plan.py      pieces -> units of work
    members.py   a piece -> its pictures, as a stream
    pictures.py  one picture: validate, decode, turn upright, shrink, encode
    gather.py    first pass: one unit -> its pictures, spilled by shuffle bucket
    spill.py     the file between the passes
    totals.py    between the passes: sums and the error budget
    shards.py    second pass: a range of buckets -> one Parquet shard with masks
    known.py  digests.py  sidecars.py  additions to a dataset: pictures, masks
    card.py  preview.py  progress.py   what a person sees

Two passes, because archives can only be read as streams while shards are shuffled over everything:
each unit reads its part of the source once and files its pictures by bucket of a hash; each shard
collects its buckets from all units. A picture's place follows from (seed, its bytes), so equal
pictures meet in one bucket, and the shards do not depend on how the work was cut or by whom it was
done.
"""

from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import run

__all__ = ["PrepareConfig", "run"]
