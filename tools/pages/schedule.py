"""schedule: what goes over a run, for each option."""

from pathlib import Path

import numpy as np

from pages import words
from pages.figures import colour, new_figure, save

TOTAL, BATCH = 1000, 1024
PANELS = {
    "lr": "lr",
    "weight_decay": "weight decay",
    "momentum": "momentum of the teacher",
    "teacher_temp": "temperature of the teacher",
}


def schedule(out: Path) -> str:
    """Draws the four values that change over a run under each option, and returns the section that shows them."""
    options = words.options("schedule")
    plans = [words.built("schedule", option.name).schedules(TOTAL, batch_size=BATCH) for option in options]
    figure, steps = new_figure(4.2), np.arange(TOTAL)
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for option, schedules in zip(options, plans, strict=True):
            values = [schedules[name][step] for step in steps]
            axes.plot(100 * steps / TOTAL, values, color=colour(option.sides), label=option.name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("% of the run", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8)
    save(figure, out / "schedule.png")
    text = f"""
The four values that change over a run, as configs/schedule states them, at {BATCH} images per step: the lr before the
multiplier of a layer, the weight decay, the momentum by which the teacher follows the student, and the temperature of
the teacher's targets.

Look at the right ends: cosines must know how long the run will be, as all of them arrive at its last step. Phases are
constant once they are over, so that such a run can be made longer, or branch, at any step: the 7B was trained in this
way, and each of its later stages takes up where another one was.
"""
    return words.section("Schedule", "schedule", text, "schedule.png")
