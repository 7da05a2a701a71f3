#!/usr/bin/env python3
"""Serve models: a page with a brush that fills holes in photographs, and an HTTP interface.

$ python jobs/serve.py                                        # the model trained last in the store
$ python jobs/serve.py --model models:/context-encoder@champion other=store/pretrain/KEY
$ curl -F image=@photo.jpg -F mask=@mask.png http://127.0.0.1:8000/fill -o filled.png
"""

from pipelines.cli import main
from pipelines.serve.config import ServeConfig
from pipelines.serve.run import serve_models

if __name__ == "__main__":
    main(serve_models, ServeConfig)
