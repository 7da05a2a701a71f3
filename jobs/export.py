#!/usr/bin/env python3
"""Write the encoder of a model for use elsewhere: with torch alone, ONNX or torch.export.

$ python jobs/export.py --model store/pretrain/KEY --output encoder
"""

from pipelines.cli import main
from pipelines.export.config import ExportConfig


def run(config: ExportConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_export
    from pipelines.export.run import export_encoder

    export_encoder(config)
    after_export(config)


if __name__ == "__main__":
    main(run, ExportConfig)
