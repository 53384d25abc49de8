"""Every layer of the backbone learns at the same rate: multiplier 1. Follows the legacy trainer @ 67f6a87."""


class Uniform:
    """An lr multiplier of 1 for all layers."""

    def multiplier(self, name: str, depth: int) -> float:
        """Returns the lr multiplier of the parameter `name` of a backbone with `depth` blocks, which is 1."""
        return 1.0
