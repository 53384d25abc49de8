"""Every step has the crop sizes that `crops` says."""

from dinoswap.resolution.base import Resolution, StepSizes


class FixedResolution(Resolution):
    """One entry, of all steps."""

    def sizes(self, global_size: int, local_size: int) -> list[StepSizes]:
        return [StepSizes(global_size, local_size, 1.0)]

    def index(self, seed: int, step: int) -> int:
        return 0
