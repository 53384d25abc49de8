"""A page that shows each axis to a person: README.md with a picture per axis.

    python tools/axes_page.py -o results/reference/axes

The same command makes the same page: nothing on it depends on the date, the commit or earlier runs.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dinoswap.files.writing import write_atomically
from pages import anchoring, masks, optimiser, passes, position, reductions, schedule, settings, views, words

INTRODUCTION = """
# The axes, one by one

Made by `{command}`.

A student network learns to predict what a teacher network makes of other views of the same image; the teacher is a
slow average of the student. Two implementations of this differ in many places. Each difference is one **axis**: a
config group with an option per side, so that it can be changed alone. Every section below opens with the options of
one axis, then shows what they do.

**Blue** is the official side (Meta's DINOv2), **orange** the legacy trainer, **grey** what stands for neither.
Two more presets: `aligned`, official with clustering, and `dinov3`, Meta's DINOv3.
`dinoswap-train preset=legacy masking=block --explain` says in words which option of each axis a run uses.
"""
CREDIT = """
The photograph is `china.jpg` of scikit-learn's sample images, by danielbuechele
(https://www.flickr.com/photos/danielbuechele/), [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/); cropped,
recoloured and masked here.
"""
RESOLUTION = """
Which crops a step has. `mixed` draws one of several pairs of sizes for each step, the same for all ranks, by the number
of the step: with `resolution.global_sizes=[512,768]`, `resolution.local_sizes=[112,224]` and
`resolution.ratios=[0.75,0.25]` a quarter of the steps has crops of 768 and 224 pixels. Boxes, flips and colours of the
crops are those that the same image has under `fixed`, as they are drawn before the crop is cut; masks are drawn on the
grid of the step. Trained last and for a short time, it makes features that hold at several resolutions.
"""
DA3 = "It has no picture here: every such run draws what its teacher and its student make of the same images."


def page(out: Path, steps: int, command: str) -> str:
    """Draws all pictures into `out`, and returns the Markdown that shows them."""
    sides = optimiser.both_sides()
    sections = [
        INTRODUCTION.strip().format(command=command) + "\n",
        views.augmentation(out),
        passes.forward(out),
        masks.masking(out, steps),
        masks.clustering(out),
        reductions.reduction(out),
        optimiser.weight_decay(out, sides),
        optimiser.layer_decay(out, sides),
        position.position(out),
        anchoring.gram(out),
        schedule.schedule(out),
        words.section("Resolution", "resolution", RESOLUTION),
        settings.details(out, sides),
        words.section("DA3", "da3", DA3),
        CREDIT.strip() + "\n",
    ]
    return "\n".join(sections)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder")
    parser.add_argument("--steps", type=int, default=200, help="how many steps' masks to draw")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = page(arguments.out, arguments.steps, f"python tools/axes_page.py {shlex.join(argv)}")
    write_atomically(arguments.out / "README.md", text)
    print(f"{arguments.out}/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
