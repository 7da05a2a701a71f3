"""`ray start`, with the patience that a busy machine needs: Ray itself gives up after 30 s.

$ python -m infra.local.start_ray start --head --block
"""

import os

from ray.scripts.scripts import main

from pipelines.runtime.ray_internals import START_LIMITS, patient_start

if __name__ == "__main__":
    for name, value in START_LIMITS.items():
        os.environ.setdefault(name, value)
    with patient_start(print):
        main()
