# `make demo` and `make test` do everything on a fresh machine with Python 3.11+ (another one through PYTHON=).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check golden

demo: $(INSTALLED)
	$(BIN)/dinoswap-train recipe=demo study=demo

test: $(INSTALLED) check
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ssl/dinoswap

golden: $(INSTALLED)
	$(BIN)/python tools/renew_golden.py

# an editable install: reinstalled only when what is installed may have changed
$(INSTALLED): pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
