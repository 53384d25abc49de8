"""Every layer of the backbone learns at the same rate: multiplier 1. Follows the legacy trainer @ 67f6a87."""


class Uniform:
    def multiplier(self, name: str, depth: int) -> float:
        """For a parameter `name` of a backbone with `depth` blocks."""
        return 1.0
