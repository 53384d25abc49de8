"""The seconds of the evaluation at the end of a run: its images decoded, the networks, the families of metrics."""

import math
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from dinoswap.config.measured import build_metrics
from dinoswap.evaluation.baselines import BASELINES
from dinoswap.evaluation.evaluator import backbone_of
from dinoswap.metric.base import Extent, ImageMetric
from dinoswap.model import SelfDistillation
from planning.hardware import GPUS
from planning.speed import products
from planning.values import Config, Request

DECODED = 250.0
"""Images that a core decodes, resizes and crops in a second, measured: JPEGs of 500 x 375 pixels and 63 kB, 224-pixel
crops, 262 to 266 a second on a Xeon."""


def evaluation_seconds(
    cfg: Config, model: SelfDistillation, request: Request, evaluated: tuple[int, int, int]
) -> dict[str, float]:
    """Returns the seconds of the parts of a final evaluation, and last of all of it. `evaluated` are the numbers of
    training images, test images and classes of the data set; `evaluation.images` bounds the first two.

    GPUs share all of it. Networks wait for images or images for networks, whichever take longer. Families that do not
    know their cost are nan and not in the sum, nor are families of dense features, and the reading of files.
    """
    evaluation, gpu = cfg["evaluation"], GPUS[request.gpu]
    *images, classes = evaluated
    train, test = (min(count, evaluation["images"]) for count in images)
    networks = 2 if evaluation["baselines"] else 1
    share = request.gpus * request.utilisation
    decoding = (train + test) / (DECODED * request.gpus * max(cfg["data"]["workers"], 1))
    products_of_networks = networks * (train + test) * forward_flops(cfg, model)
    computing = products_of_networks / (share * gpu.peak(products(cfg, cfg["trainer"])))
    float32 = share * gpu.peak(products(cfg, {"precision": "fp32"}))
    width, families = backbone_of(model.teacher).embed_dim, {}
    image = torch.zeros(1, 3, evaluated_side(cfg), evaluated_side(cfg), dtype=torch.uint8)
    baselines = [len(read(image)[0]) for read in BASELINES.values()] if evaluation["baselines"] else []
    for name, metric in build_metrics(cfg).items():
        if isinstance(metric, ImageMetric):
            of_network = Extent(train, test, classes, len(metric.reads), width)
            rows = [of_network] * (networks if metric.supervised else 1)
            rows += [replace(of_network, kinds=1, width=wide) for wide in baselines if metric.supervised]
            families[name] = sum(metric.flops(row) or math.nan for row in rows) / float32
    total = max(decoding, computing) + sum(value for value in families.values() if not math.isnan(value))
    return {"decoding": decoding, "networks": computing, **families, "all": total}


def evaluated_side(cfg: Config) -> int:
    """Returns the side in pixels of an image as evaluations crop it."""
    return int(cfg["evaluation"]["size"] or cfg["crops"]["global_size"])


def forward_flops(cfg: Config, model: SelfDistillation) -> int:
    """Returns the FLOPs of the backbone for one image as evaluations crop it."""
    side = evaluated_side(cfg)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone_of(model.teacher)([torch.empty(1, 3, side, side, device="meta")])
    return int(counter.get_total_flops())
