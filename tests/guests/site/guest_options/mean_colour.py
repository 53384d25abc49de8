"""The mean colour of a global crop is read off its class token by a linear layer: a mean squared error."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional

from dinoswap.objectives.base import Context, Objective


class MeanColour(Objective):
    def __init__(self, *, loss_weight: float) -> None:
        super().__init__(loss_weight)

    def networks(self) -> Mapping[str, Callable[[int], nn.Module]]:
        return {"colour_head": lambda width: nn.Linear(width, 3)}

    def forward(self, context: Context) -> dict[str, Tensor]:
        colours = context.batch.global_crops.float().mean((-2, -1))  # [2, B, 3, H, W] -> [2, B, 3]
        predicted = context.student["colour_head"](context.student_features.global_cls)
        return {"mse": functional.mse_loss(predicted.float(), colours)}
