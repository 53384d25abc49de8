"""gram: when a run is anchored to which teacher, for each option."""

from pathlib import Path
from typing import Any

import numpy as np

from dinoswap.gram.base import WEIGHT, GramAnchoring
from dinoswap.gram.snapshot import REFRESH
from dinoswap.optim.schedules import Phases
from pages import words
from pages.figures import NEITHER, new_figure, save

STEPS = 1000
ALWAYS = Phases(start=1.0, peak=1.0, end=1.0, warmup=0, cosine=0)
LATE = Phases(start=0.0, peak=0.0, end=2.0, warmup=0.5, cosine=0.1)


def gram(out: Path) -> str:
    """Draws the weight of the Gram loss over a run and when its teacher is copied, and returns the section that shows
    it."""
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "ema": ("ema", {}),
        "snapshot": ("snapshot", {}),
        "snapshot, late and three times": (
            "snapshot",
            {"weight_schedule": LATE, "refresh_first": 0.6, "refresh_times": 3},
        ),
    }
    figure = new_figure(2.6)
    for axes, (title, (option, given)) in zip(figure.subplots(1, len(arms)), arms.items(), strict=True):
        objective: GramAnchoring = words.built("gram", option, **{"weight_schedule": ALWAYS, **given})
        schedules = objective.schedules(STEPS)
        axes.plot([schedules[WEIGHT][step] for step in range(STEPS)], color=NEITHER, label="weight")
        if REFRESH in schedules:
            refreshed = np.flatnonzero(schedules[REFRESH].values)
            axes.plot(refreshed, np.zeros(len(refreshed)), "k^", label="a new copy of the teacher", clip_on=False)
        axes.set(title=title, xlabel="step", ylim=(0, 2.2))
        axes.title.set_fontsize(9)
    figure.axes[0].set_ylabel("weight of the loss")
    figure.axes[1].legend(fontsize=8, loc="upper right")
    save(figure, out / "gram.png")
    text = """
The student's patch tokens are compared among each other, and so are those of a teacher: what is asked for is that the
same patches are alike, not that the tokens are the same. The weight of this loss over a run of 1000 steps, and the
steps that begin with a new copy of the EMA teacher.

Look at the first: the EMA teacher of the step itself is there from the start. Look at the second: an earlier teacher
has to exist first, so the weight is 0 until the first copy; weights to begin with, `objectives.gram.path=FILE`, can be
given instead. At the right is the form of DINOv3's largest recipe: late in training, when patch tokens have begun to
lose what is local in them, and renewed a few times.
"""
    return words.section("Gram anchoring", "gram", text, "gram.png")
