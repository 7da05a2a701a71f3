"""Stage: any source of images -> a committed dataset in the shard contract."""
