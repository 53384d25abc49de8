"""The commands of `dinoswap-ablate`, a module each: what `base.Command` describes."""
