"""The noise budget of a study: how much of the difference between two runs of one arm each random stream makes, and
what pairing arms by a stream takes from the variance of their difference.

array.py: which seeds the runs have -> runs.py: the runs, as entries of the ledger, and their values -> components.py:
the analysis of variance -> budget.py: what it says of a metric -> page.py: the page; numbers.py: noise.json, which
`dinoswap-ablate plan` reads.
"""
