"""Find the images of a folder that look most like one of them.

$ python examples/find_similar.py --model store/pretrain/KEY --folder photos --query photos/a.jpg

Of many images, `python -m pipelines embed --query` does the same on a cluster.
"""

import argparse
from pathlib import Path

import numpy as np

from pipelines.api import load


def main() -> None:
    """Embed every image, compare by the cosine about the mean, print the nearest."""
    parser = argparse.ArgumentParser(description="Find similar images.")
    parser.add_argument("--model", required=True, help="any reference to a model")
    parser.add_argument("--folder", type=Path, required=True, help="JPEG and PNG images, all below")
    parser.add_argument("--query", type=Path, required=True, help="an image")
    parser.add_argument("--count", type=int, default=5, help="of similar images to show")
    parser.add_argument("--store", default="store", help="folder for datasets and models")
    flags = parser.parse_args()

    model = load(flags.model, store=flags.store)
    found = flags.folder.rglob("*")
    paths = sorted(path for path in found if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    features = model.embed(paths, pool="mean")  # float32 (N, D)
    query = model.embed([flags.query], pool="mean")

    mean = features.mean(axis=0)
    features, query = features - mean, query - mean
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(query)
    cosine = features @ query[0] / np.maximum(lengths, 1e-12)
    for at in np.argsort(-cosine)[: flags.count]:
        print(f"{cosine[at]:6.3f}  {paths[at]}")


if __name__ == "__main__":
    main()
