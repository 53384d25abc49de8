"""Each step has one of several pairs of crop sizes, drawn with given ratios.

Step s has entry i where the s-th uniform number u of NumPy's PCG64 lies in [r_0 + .. + r_{i-1}, r_0 + .. + r_i). The
generator is moved to its s-th number, so a step's sizes depend on its number alone: a resumed run goes on where it was.

The draws are keyed by the run's seed, as all others are: runs of one seed share the sizes of their steps, so that arms
of an ablation are paired, and another seed has another sequence. Follows build_multi_resolution_data_loader_from_cfg of
facebookresearch/dinov3 @ 6876159 (train/train.py), where every run has the sequence of the seed 65537 and a resumed
run begins it again: `seed` 65537 is that sequence.
"""

import math

import numpy as np

from dinoswap.resolution.base import Resolution, StepSizes
from dinoswap.rng import derive


class MixedResolution(Resolution):
    """Several pairs of sizes."""

    def __init__(
        self, *, global_sizes: list[int] | None, local_sizes: list[int] | None, ratios: list[float], seed: int | None
    ) -> None:
        """Entry i has crops of `global_sizes[i]` and `local_sizes[i]` pixels in a share `ratios[i]` of the steps.
        `global_sizes` None: the size in `crops` and twice that; `local_sizes` None: the size in `crops` for every
        entry. `seed` None: that of the run. Raises ValueError for lists that do not belong together."""
        of_globals = 2 if global_sizes is None else len(global_sizes)
        of_locals = of_globals if local_sizes is None else len(local_sizes)
        if not of_globals == of_locals == len(ratios):
            raise ValueError(
                f"ratios={ratios}: there are {len(ratios)}, and {of_globals} global_sizes and {of_locals} local_sizes; "
                "give as many of each"
            )
        if not (all(ratio > 0 for ratio in ratios) and math.isclose(sum(ratios), 1, abs_tol=1e-8)):
            raise ValueError(f"ratios={ratios}: must be above 0 and sum to 1, and they sum to {sum(ratios):g}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed={seed}: must be 0 or more, or null for the run's own")
        self.global_sizes, self.local_sizes, self.ratios, self.seed = global_sizes, local_sizes, ratios, seed

    def sizes(self, global_size: int, local_size: int) -> list[StepSizes]:
        global_sizes = self.global_sizes or [global_size, 2 * global_size]
        local_sizes = self.local_sizes or [local_size] * len(self.ratios)
        return [StepSizes(*entry) for entry in zip(global_sizes, local_sizes, self.ratios, strict=True)]

    def index(self, seed: int, step: int) -> int:
        key = derive(seed, "resolution") if self.seed is None else self.seed
        generator = np.random.Generator(np.random.PCG64(key).advance(step))  # one number is drawn in each step
        return int(generator.choice(len(self.ratios), p=self.ratios))
