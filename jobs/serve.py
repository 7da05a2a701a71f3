#!/usr/bin/env python3
"""Serve models: a page with a brush that fills holes in photographs, and an HTTP interface.

$ python jobs/serve.py                                        # the model trained last in the store
$ python jobs/serve.py --model models:/context-encoder@champion other=store/pretrain/KEY
$ curl -F image=@photo.jpg -F mask=@mask.png http://127.0.0.1:8000/fill -o filled.png
"""

from pipelines.cli import main
from pipelines.serve.config import ServeConfig


def run(config: ServeConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.serve.run import serve_models

    serve_models(config)


if __name__ == "__main__":
    main(run, ServeConfig)
