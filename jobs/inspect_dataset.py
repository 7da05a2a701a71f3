#!/usr/bin/env python3
"""Print the card of a prepared dataset; with --verify check every file against the manifest.

$ python jobs/inspect_dataset.py --dataset datasets/photos --verify True

The name is not `inspect`: a script's folder comes first on the import path, and that name belongs
to the standard library.
"""

from pipelines.cli import main
from pipelines.prepare.verify import InspectConfig, inspect_dataset

if __name__ == "__main__":
    main(inspect_dataset, InspectConfig)
