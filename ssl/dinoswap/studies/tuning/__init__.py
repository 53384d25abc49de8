"""The parts of `dinoswap-tune`: the study file, its trials in Optuna, the runs that they are, the workers, the
report. Everything that must not be lost is a file of the study's folder: trials in Optuna's journal, results in the run
folders, and which worker is alive in locks that the system releases when a process ends.
"""
