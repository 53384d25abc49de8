"""A trained vector for the class token and for each patch of one grid, resampled bicubically to other grids.

The table is the backbone's parameter `pos_embed`; `model.interpolate_offset` and `model.interpolate_antialias` say how
it is resampled. Follows dinov2/models/vision_transformer.py of facebookresearch/dinov2 @ b8931f7.
"""

from dinoswap.position.base import Position


class LearnedPosition(Position):
    """The table and no rotation."""

    has_table = True
