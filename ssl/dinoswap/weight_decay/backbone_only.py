"""The weight-decay schedule reaches the backbone alone; every other module keeps AdamW's default of 0.01.

At the end of the usual schedule (0.04 -> 0.4) the heads are thus decayed 40 times less than with `all_groups`. Follows
the legacy trainer @ 67f6a87, which looks for its groups by index and misses those of the heads.
"""


class BackboneOnly:
    """Weight decay by the schedule for the backbone alone."""

    def schedule(self, module: str) -> str:
        """Returns the name of the schedule that the regularised parameters of `module` follow."""
        return "weight_decay" if module == "backbone" else "constant_weight_decay"
