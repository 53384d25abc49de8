# make demo    a small study on the images in the package: legacy, official and aligned on three seeds, and its report
# make test    all tests but the slow ones, by JOBS=2 processes of one thread each; make check: ruff, mypy
# make test-slow   those on SLURM, of runs that are killed, and of the README's commands, by twice as many: half is waiting
# make golden  renew tests/golden and the table of axes after a meant change of configs or numbers
#
# Each does everything on a fresh machine with Python 3.11+ (another interpreter through PYTHON=): it creates .venv, and
# uses it again until pyproject.toml changes.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow check golden

demo: $(INSTALLED)
	$(BIN)/dinoswap-ablate run demo hydra.launcher.processes=2
	$(BIN)/dinoswap-ablate report demo

test test-slow: export OMP_NUM_THREADS ?= 1
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n $$((2 * $(JOBS))) --dist loadfile --no-loadscope-reorder -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ssl/dinoswap ssl/hydra_plugins

golden: $(INSTALLED)
	$(BIN)/python tools/renew_golden.py --losses

$(INSTALLED): pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
