"""The model card beside an exported encoder: what it is, how a stranger loads it, its limits."""

from typing import Any

from ce_model.network_config import ALEXNET, INPAINTING, NetworkConfig

INTRODUCTIONS = {
    "alexnet": "AlexNet to pool5, pretrained by inpainting to learn features of whole images.",
    "inpaint": "The encoder of an inpainting network: a bottleneck that describes the context.",
}
PAPERS = {
    "inpainting": "Pathak et al., *Context Encoders: Feature Learning by Inpainting*, CVPR 2016, "
    "arXiv:1604.07379",
    "relative_position": "Doersch et al., *Unsupervised Visual Representation Learning by Context "
    "Prediction*, ICCV 2015, arXiv:1505.05192",
    "exemplar": "Dosovitskiy et al., *Discriminative Unsupervised Feature Learning with "
    "Convolutional Neural Networks*, NIPS 2014, arXiv:1406.6909",
    "transformation": "Agrawal et al., *Learning to See by Moving*, ICCV 2015, arXiv:1505.01596",
}
LEARNED = {
    "inpainting": "to predict hidden cells of an image",
    "relative_position": "to tell where a second patch of an image lies",
    "exemplar": "to tell each image, transformed, from all others",
    "transformation": "to tell how a second view of an image was moved",
}
TRAINED = {  # entries of model.json, and how the card calls them
    "strategy": "holes it was trained with",
    "pretext": "pretext",
    "steps": "training steps",
    "seed": "seed",
    "dataset_fingerprint": "fingerprint of the dataset",
    "code": "commit of the code",
    "key": "key of the training",
}
MEASURED = {
    "psnr_hole": "PSNR in the hole, dB",
    "psnr_mean_fill": "PSNR of the dataset's mean colour in the hole, dB",
    "psnr_visible_mean": "PSNR of each image's own mean colour in the hole, dB",
    "psnr_telea": "PSNR of Telea's method in the hole, dB",
    "ssim_hole": "SSIM in the hole",
    "l1_hole": "L1 in the hole, share of the range",
    "l2_hole": "L2 in the hole, share of the range",
    "accuracy": "right answers, share",
    "accuracy_chance": "right answers by chance, share",
}


def _tag(network: NetworkConfig) -> str:
    return network.pretext.replace("_", "-")


def model_card(description: dict[str, Any], info: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        description: what `encoder.json` holds.
        info: where the model comes from, of `model.json`.
    """
    network = NetworkConfig(**description["network"])
    of_backbone = network.encoder != ALEXNET
    usual = f"An encoder of preset {network.preset}."
    introduction = INTRODUCTIONS.get(network.preset, usual)
    if network.preset == "features":
        encoder = network.encoder if of_backbone else "AlexNet with padding to pool5"
        introduction = f"{encoder}, pretrained {LEARNED[network.pretext]}."
    seen, kind = "small views of images", "views"
    if network.pretext == INPAINTING:
        seen, kind = "images with holes", "images"
    width = " x ".join(map(str, description["output"][1:]))
    return f"""---
library_name: {"transformers" if of_backbone else "pytorch"}
tags: [feature-extraction, self-supervised-learning, {_tag(network)}, context-encoder, pytorch]
---

# Context encoder: {network.preset}

{introduction} Method: {PAPERS[network.pretext]}.

## Use

{_of_backbone(description) if of_backbone else _with_torch(description, width)}
## Files

| file | sha256 |
|---|---|
{_rows(description["files"])}

The largest difference of each form to the trained model, on {description["checked_images"]} images
of noise: {_differences(description["largest_difference"])}.

## Training

| | |
|---|---|
{_known(TRAINED, info) or "| origin | the model folder does not say |"}

Measured by the training on its first validation images, at the end:

| | |
|---|---|
{_known(MEASURED, info.get("validation") or {}) or "| | the model folder does not say |"}

## Limits

- It was trained on {seen}; its batch-norm statistics are those of such {kind}. Where
  whole images are what counts, compare with statistics of your own images before relying on it.
- It knows what its training images show, with their biases. Licences and consent of those images
  are not recorded here: ask whoever trained it before you publish results or the weights.
- The figures above are of {_tag(network)}. How good the features are for your task is for you to
  measure.
"""


def _with_torch(description: dict[str, Any], width: str) -> str:
    side = description["side"]
    if "encoder.py" not in description["files"]:  # a layer that is not one of torch.nn
        return f"""With torch alone, in the folder of this file:

```python
import torch

network = torch.export.load("encoder.pt2").module()
images = torch.zeros(2, {side}, {side}, 3, dtype=torch.uint8)  # RGB
with torch.no_grad():
    features = network(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
# (2, {width.replace(" x ", ", ")})
```

- Input: {description["input"]}. Bring the shorter side of an image to {side} px and
  take the centre square.
- Output: {width} values per image.
"""
    return f"""`encoder.py` needs torch and nothing else. In the folder of this file:

```python
import torch
import encoder

network = encoder.load()
images = torch.zeros(2, {side}, {side}, 3, dtype=torch.uint8)  # RGB
with torch.no_grad():
    features = network(encoder.preprocess(images))  # (2, {width.replace(" x ", ", ")})
```

- Input: {description["input"]}. Bring the shorter side of an image to {side} px and
  take the centre square.
- Output: {width} values per image. `encoder.features(network, x)` gives every layer by its name.
- Batch norm is folded into the layers before it: fine-tuning trains plain convolutions and biases.
"""


def _of_backbone(description: dict[str, Any]) -> str:
    side, shape = description["side"], ", ".join(map(str, description["output"][1:]))
    return f"""In the folder of this file, with transformers:

```python
import torch
from transformers import AutoModel

network = AutoModel.from_pretrained(".").eval()
images = torch.zeros(2, {side}, {side}, 3, dtype=torch.uint8)  # RGB
x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
with torch.no_grad():
    features = network(pixel_values=x).last_hidden_state  # (2, {shape})
```

With torch alone: `torch.export.load("encoder.pt2").module()(x)`.

- Input: {description["input"]}: colours in [-1, 1], not the mean and deviation of ImageNet
  (`preprocessor_config.json` says so, too). It was trained at {side} px; other sides work.
- Output: the last map. Weights behind it (a final norm or pooling) were not trained.
"""


def _rows(files: dict[str, str]) -> str:
    return "\n".join(f"| `{name}` | `{digest}` |" for name, digest in sorted(files.items()))


def _differences(found: dict[str, float]) -> str:
    return ", ".join(f"`{name}` {error:.1e}" for name, error in found.items())


def _known(names: dict[str, str], values: dict[str, Any]) -> str:
    """Rows of a table for the values that are there."""
    rows = []
    for name, title in names.items():
        value = values.get(name)
        if value is not None:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append(f"| {title} | {shown.replace('|', '&#124;')} |")
    return "\n".join(rows)
