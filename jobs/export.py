#!/usr/bin/env python3
"""Write the encoder of a model as safetensors, ONNX and torch.export, checked against the model.

$ python jobs/export.py --model store/pretrain/KEY --output encoder
"""

from pipelines.cli import main
from pipelines.export.run import ExportConfig, export_encoder

if __name__ == "__main__":
    main(export_encoder, ExportConfig)
