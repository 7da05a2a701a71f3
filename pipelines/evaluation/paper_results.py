"""The paper's own figures, quoted beside ours, and what differs.

Source: Pathak et al. 2016, arXiv:1604.07379v2, tables 1 and 2, at second hand. Later papers cite
the context encoder's segmentation as 29.7.
"""

from typing import Any

TABLE_1 = "Paris StreetView, 64 px centre of 128 px, 100 test images, trained on 14,900"
TABLE_2 = "AlexNet pretrained on ImageNet; VOC 2007 test and VOC 2012 validation"

FILLING: list[dict[str, Any]] = [
    {"row": "neighbour, HOG", "L1": 0.1992, "L2": 0.0692, "PSNR": 12.79},
    {"row": "neighbour, context-encoder features", "L1": 0.1510, "L2": 0.0430, "PSNR": 14.70},
    {"row": "context encoder, joint loss", "L1": 0.0937, "L2": 0.0196, "PSNR": 18.58},
]

TRANSFER: list[dict[str, Any]] = [
    {"row": "ImageNet labels", "classification": 78.2, "detection": 56.8, "segmentation": 48.0},
    {"row": "random Gaussian", "classification": 53.3, "detection": 43.4, "segmentation": 19.8},
    {"row": "autoencoder", "classification": 53.8, "detection": 41.9, "segmentation": 25.2},
    {
        "row": "Agrawal et al.",
        "classification": 52.9,
        "detection": 41.8,
        "pretext": "transformation",
    },
    {"row": "Wang et al.", "classification": 58.7, "detection": 47.4},
    {
        "row": "Doersch et al.",
        "classification": 55.3,
        "detection": 46.6,
        "pretext": "relative_position",
    },
    {
        "row": "context encoder",
        "classification": 56.5,
        "detection": 44.5,
        "segmentation": 30.0,
        "pretext": "inpainting",
    },
    {
        "row": "k-means initialisation (Kraehenbuhl et al. 2016, not in the paper)",
        "classification": 56.6,
        "detection": 45.6,
        "segmentation": 32.6,
    },
]

DIFFERENCES = {
    "inpainting": f"Quoted: {TABLE_1}; the region is the predicted centre. Ours: the images and "
    "masks named above; the region is what the network did not see (56 px of a 64 px centre).",
    "finetune": f"Quoted: {TABLE_2}, 1.2 million images, 100,000 iterations. Ours: the data, "
    "steps and labels named above; batch norm instead of LRN in pretraining, folded before "
    "fine-tuning; every row is rescaled alike and has its own learning rate.",
}
DIFFERENCES["detection"] = DIFFERENCES["segmentation"] = DIFFERENCES["finetune"]


# What the columns of the second table are measured by here; an accuracy is no mAP.
PRECISIONS = ("mAP", "mAP all_points", "mAP 11_points")
COLUMNS = {
    "classification": ("finetune", PRECISIONS),
    "detection": ("detection", PRECISIONS),
    "segmentation": ("segmentation", ("mIoU",)),
}


def rows_for(task: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The paper's rows for a task, and the names of their figures."""
    if task == "inpainting":
        return FILLING, ["L1", "L2", "PSNR"]
    column = {"finetune": "classification"}.get(task, task)
    found = [row for row in TRANSFER if column in row]
    return found, [column] if found else []
