"""Stage: any source of pictures -> a committed dataset in the shard contract.

    sources.py   what a source holds: pieces of it, each a file, an archive or a range of one
    plan.py      pieces -> units of work, and the key of the whole job
    pictures.py  one picture: validate, decode, turn upright, shrink, encode
    gather.py    one unit -> its pictures, spilled by shuffle bucket
    spill.py     the file between the two passes
    shards.py    a range of buckets -> one Parquet shard with masks
    card.py      what a person wants to know of a dataset
    run.py       the job: plan, gather, judge the faults, write shards, commit

Two passes, because archives can only be read as streams while shards are shuffled over everything:
each unit reads its part of the source once and files its pictures by bucket of a hash; each shard
collects its buckets from all units. A picture's place follows from (seed, its bytes), so equal
pictures meet in one bucket, and the shards do not depend on how the work was cut or by whom it was
done.
"""

from pipelines.prepare.run import PrepareConfig, run

__all__ = ["PrepareConfig", "run"]
