"""The losses. Each reads a Context and returns its unweighted terms by name; none depends on another."""
