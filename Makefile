# Each target does its own set-up: the first call makes a virtual environment in .venv.
PYTHON ?= python3
VENV ?= .venv
# The only place where torch is pinned; `make demo TORCH=2.14.0` takes another one, and an
# environment of your own needs no make at all (see README, "Your own torch").
TORCH ?= 2.13.0

BIN := $(VENV)/bin
LOWEST := .venv-lowest
READY := $(VENV)/.ready-$(TORCH)

.PHONY: demo docs test test-lowest test-slow lint format clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	echo "torch==$(TORCH)" > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[demo,dev]"
	touch $@

demo: $(READY)
	$(BIN)/palenka demo

# The pages of docs/ as a site in site/; any warning fails.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Files go to the processes whole: what a file shares is made once. Each process imports torch (0.5 GB).
test: lint
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

# The same tests with each dependency but torch at the lowest version that pyproject.toml allows; old ones may warn.
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	echo "torch==$(TORCH)" >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable ".[demo,dev]"
	$(LOWEST)/bin/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile -W default

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) $(LOWEST) dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
