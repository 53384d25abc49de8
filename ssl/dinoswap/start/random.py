"""Training begins from nothing: each network has the initial weights that the seed gives it."""

from dinoswap.start.base import Start


class RandomStart(Start):
    """Leaves all networks as they are."""
