#!/usr/bin/env python3
"""Write the features of images as Parquet; show the nearest neighbours of a query image.

$ python jobs/embed.py --model store/pretrain/KEY --source photos --output features
$ python jobs/embed.py --model store/pretrain/KEY --source photos --output features \
    --query holiday.jpg
"""

from pipelines.cli import main
from pipelines.embed.config import EmbedConfig


def run(config: EmbedConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_embed
    from pipelines.embed.run import embed_images

    after_embed(config, embed_images(config))


if __name__ == "__main__":
    main(run, EmbedConfig)
