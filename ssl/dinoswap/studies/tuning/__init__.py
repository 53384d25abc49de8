"""What `dinoswap-tune` is made of: the study file, its trials in Optuna, the runs that they are, the workers, the
report. Everything that must not be lost is a file of the study's folder: trials in Optuna's journal, results in the run
folders, and who is at work in locks that the system takes from a dead process.
"""
