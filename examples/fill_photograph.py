"""Train on the sample images, then fill holes in a photograph of any size.

$ python examples/fill_photograph.py --steps 100
$ python examples/fill_photograph.py --model models:/context-encoder@champion --photograph my.jpg
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from pipelines.api import load, pretrain


def main() -> None:
    """Train or load, fill, write original, holes and result side by side."""
    parser = argparse.ArgumentParser(description="Fill holes in a photograph.")
    parser.add_argument("--model", help="any reference to a model; without one, train on samples")
    parser.add_argument("--photograph", type=Path, help="JPEG or PNG; without one, a sample")
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument("--batch-size", type=int, default=64, help="of training")
    parser.add_argument("--store", default="store", help="folder for datasets and models")
    parser.add_argument("--output", default="filled.png", help="image to write")
    flags = parser.parse_args()

    if flags.model:
        model = load(flags.model, store=flags.store)
    else:
        model = pretrain(steps=flags.steps, batch_size=flags.batch_size, store=flags.store)
    print(model)

    image = skimage.data.astronaut()
    if flags.photograph:
        image = np.asarray(Image.open(flags.photograph).convert("RGB"))
    height, width = image.shape[:2]
    mask = np.zeros((height, width), bool)  # True where to fill
    mask[height // 5 : height // 3, width // 5 : width // 3] = True
    mask[height // 2 : height * 2 // 3, width // 2 : width * 2 // 3] = True

    (filled,) = model.fill([image], [mask])

    assert (filled[~mask] == image[~mask]).all()  # outside of the mask nothing changes
    holes = np.where(mask[..., None], np.uint8(255), image)
    Image.fromarray(np.concatenate([image, holes, filled], axis=1)).save(flags.output)
    print(f"original, holes, filled: {flags.output}")


if __name__ == "__main__":
    main()
