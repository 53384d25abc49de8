"""The weight-decay schedule reaches every module: backbone and heads alike.

Follows dinov2/train/train.py of facebookresearch/dinov2 @ b8931f7 (`apply_optim_scheduler`).
"""


class AllGroups:
    def schedule(self, module: str) -> str:
        """The name of the schedule that the regularised parameters of `module` follow."""
        return "weight_decay"
