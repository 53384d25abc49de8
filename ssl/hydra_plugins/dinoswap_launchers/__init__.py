"""hydra/launcher=local and hydra/launcher=slurm. Hydra imports these modules at every start: nothing heavy in here."""
