"""Time `augmentation=official` against the same pipeline in torchvision on PIL, interleaved, in one thread.

    taskset -c 1 python tools/benchmark_augmentation.py [--rounds 7] [--json FILE]

Per image and size: milliseconds of CPU time (median over rounds) of the PIL pipeline, of ours, of ours with the
normalisation to float32 that the PIL pipeline includes (here it is done once per batch, on the device), of
`augmentation=legacy` with as many crops, and of decoding the JPEG; then the ratio PIL / ours, median over rounds with
its range, without and with the decoding, and the images per second of a core that decodes and augments, PIL and ours.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms as T

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = {
    "224": {"image": (500, 375), "global": 224, "local": 96, "locals": 8, "repeats": 10},
    "32": {"image": (32, 32), "global": 32, "local": 16, "locals": 6, "repeats": 60},
}


def pil_pipeline(global_size: int, local_size: int, locals_number: int) -> Callable[[Image.Image], list[torch.Tensor]]:
    """Returns the official multi-crop augmentation composed from torchvision's transforms."""

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Callable[..., torch.Tensor]:
        bicubic = T.InterpolationMode.BICUBIC
        jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
                T.RandomHorizontalFlip(),
                jitter,
                T.RandomGrayscale(0.2),
                T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], p=blur),
                T.RandomSolarize(128, p=solarize),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
            ]
        )

    first = view(global_size, (0.32, 1.0), 0.0, 0.0)
    second = view(global_size, (0.32, 1.0), 0.9, 0.2)
    local = view(local_size, (0.05, 0.32), 0.5, 0.0)
    return lambda image: [first(image), second(image), *[local(image) for _ in range(locals_number)]]


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Returns the milliseconds of CPU time that one call of `work` takes, over so many repeats."""
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats * 1000


def sample_jpeg(size: tuple[int, int]) -> bytes:
    """Returns a photograph of `size` = (width, height) as a JPEG of quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def normalised(views: Any) -> list[torch.Tensor]:
    """Returns the global and the local crops in float32, normalised as a network takes them."""
    mean, std = (torch.tensor(channels).view(3, 1, 1) * 255 for channels in (MEAN, STD))
    stacks = (torch.stack(crops) for crops in (views.global_crops, views.local_crops))
    return [stack.float().sub_(mean).div_(std) for stack in stacks]


def augmentation(option: str, global_size: int, local_size: int, local_number: int) -> Any:
    """Returns an option of the group as its YAML describes it, for crops of these sizes."""
    return construct_option(
        compose_config([f"augmentation={option}", "recipe=none"])["augmentation"],
        "augmentation",
        global_crops_size=global_size,
        local_crops_size=local_size,
        local_crops_number=local_number,
    )


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Returns the milliseconds of one entry of SETTINGS, and their ratios."""
    setting = SETTINGS[name]
    data, repeats = sample_jpeg(setting["image"]), setting["repeats"]
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    pixels, rng = np.array(picture), np.random.default_rng(0)
    sizes = setting["global"], setting["local"], setting["locals"]
    pil, ours, legacy = pil_pipeline(*sizes), augmentation("official", *sizes), augmentation("legacy", *sizes)
    works: dict[str, Callable[[], object]] = {
        "pil": lambda: pil(picture),
        "ours": lambda: ours(pixels, rng),
        "ours_normalised": lambda: normalised(ours(pixels, rng)),
        "legacy": lambda: legacy(pixels, rng),
        "decode": lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    times: dict[str, list[float]] = {key: [] for key in works}
    for turn in range(rounds + 1):
        for key, work in works.items():
            duration = milliseconds(work, repeats)
            if turn > 0:  # the first turn warms up
                times[key].append(duration)
    medians = {f"{key}_ms": statistics.median(values) for key, values in times.items()}
    ratios = [pil / ours for pil, ours in zip(times["pil"], times["ours"], strict=True)]
    decoded = [(p + d) / (o + d) for p, o, d in zip(times["pil"], times["ours"], times["decode"], strict=True)]
    return {
        "size": name,
        **medians,
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "ratio_with_decode": statistics.median(decoded),
        "pil_images_per_second": 1000 / (medians["pil_ms"] + medians["decode_ms"]),
        "images_per_second": 1000 / (medians["ours_ms"] + medians["decode_ms"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(name, options.rounds) for name in SETTINGS]
    for result in results:
        print(
            f"{result['size']:>4} px  PIL {result['pil_ms']:6.2f} ms  ours {result['ours_ms']:5.2f} ms"
            f"  (normalised {result['ours_normalised_ms']:5.2f}, legacy {result['legacy_ms']:5.2f},"
            f" decode {result['decode_ms']:.2f})"
            f"  ratio {result['ratio']:.2f} [{result['range'][0]:.2f}-{result['range'][1]:.2f}],"
            f" {result['ratio_with_decode']:.2f} with decode"
            f"  images/s per core {result['pil_images_per_second']:.1f}, {result['images_per_second']:.1f}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
