#!/usr/bin/env python3
"""Fill the holes of a folder of images; pixels outside the holes are returned unchanged.

$ python jobs/inpaint.py --model store/pretrain/KEY --images photo.jpg --masks mask.png --output OUT
$ python jobs/inpaint.py --model models:/context-encoder@champion --images IMAGES \
    --masks MASKS --output FILLED
$ ray job submit --working-dir . -- jobs/inpaint.py --model s3://bucket/store/pretrain/KEY \
    --strategy central --images s3://bucket/photos --output s3://bucket/filled
"""

from pipelines.cli import main
from pipelines.inpaint.config import InpaintConfig


def run(config: InpaintConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_inpaint
    from pipelines.inpaint.run import inpaint_images

    inpaint_images(config)
    after_inpaint(config)


if __name__ == "__main__":
    main(run, InpaintConfig)
