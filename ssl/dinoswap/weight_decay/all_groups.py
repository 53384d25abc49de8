"""The weight-decay schedule reaches every module: backbone and heads alike.

Follows dinov2/train/train.py of facebookresearch/dinov2 @ b8931f7 (`apply_optim_scheduler`).
"""


class AllGroups:
    """Weight decay by the schedule for every module."""

    def schedule(self, module: str) -> str:
        """Returns the name of the schedule that the regularised parameters of `module` follow."""
        return "weight_decay"
