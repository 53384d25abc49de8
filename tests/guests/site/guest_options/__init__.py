"""A package that somebody else installs: options for dinoswap, as CONTRIBUTING.md shows them."""
