# Two commands are enough: `make run` and `make test`. Both install what they need the first time.

PYTHON ?= python3
PORT ?= 5000
ARGS ?=
STAGES ?= more
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Nothing here reports to anyone.
export DO_NOT_TRACK := 1
export KEDRO_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true

# A second thread of PyTorch's costs more than it brings on images of 8 x 8 pixels. What a file's
# tests share is made once, by the worker that has the file.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

PORT_IS_FREE = $(BIN)/python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))' 2> /dev/null || \
	{ echo "port $(PORT) is in use: choose another one with PORT=..." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install install-sweep run smoke test test-all test-gpu lint ui viz pictures repro stages experiments clean-runs

help:  ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A stamp is written only after its install ended well: an interrupted one is done again.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing lt_pipeline into $(VENV) (PyTorch with CUDA: some minutes, 6 GB of disk)"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing what the tests need"
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.viz: $(VENV)/.core
	@echo "Installing kedro viz"
	$(PIP) -e ".[viz]"
	@touch $@

$(VENV)/.pictures: $(VENV)/.core
	@echo "Installing what the pictures need"
	$(PIP) -e ".[pictures]"
	@touch $@

install: $(VENV)/.core  ## create .venv and install

install-sweep: $(VENV)/.core  ## with what sweeps over several machines need
	$(PIP) -e ".[postgres]"

run: $(VENV)/.core  ## train, merge and evaluate MORE on the embedded data; ARGS go to kedro run
	$(BIN)/kedro run --pipeline=more $(ARGS)

smoke: $(VENV)/.core  ## the same in seconds: two epochs
	$(BIN)/kedro run --pipeline=more --env=smoke $(ARGS)

test: lint  ## lint, types and the tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: lint  ## lint, types and all tests
	$(PYTEST)

test-gpu: $(VENV)/.dev  ## the tests that need CUDA; without it they fail instead of being skipped
	$(BIN)/python -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"'
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

ui: $(VENV)/.core  ## the MLflow UI of this project's runs
	@$(PORT_IS_FREE)
	@echo "Open http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	    $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --port $(PORT) --workers 1

viz: $(VENV)/.viz  ## the pipelines as a graph in the browser; ARGS go to kedro viz run
	@$(PORT_IS_FREE)
	$(BIN)/kedro viz run --no-browser --host 127.0.0.1 --port $(PORT) $(ARGS)

pictures: $(VENV)/.pictures  ## remake the pictures of docs/ui.md; needs Chromium
	$(BIN)/python docs/pictures.py $(ARGS)

repro: $(VENV)/.core  ## what has changed, and only that, through DVC; STAGES=more, or "" for all
	@git rev-parse --git-dir > /dev/null 2>&1 || \
		{ echo "DVC works in a git repository: run 'git init' here first" >&2; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro $(STAGES)

stages: $(VENV)/.core  ## write dvc.yaml from the Kedro pipelines and catalog; ARGS as in docs/dvc.md
	$(BIN)/python -m lt_pipeline.versioning.stages $(ARGS)

experiments: $(VENV)/.core  ## what differs between DVC's experiments; ARGS go to dvc exp show
	$(BIN)/python -m lt_pipeline.versioning.experiments $(ARGS)

# Downloads in data/01_raw stay: they are the data sets, not what runs made of them.
clean-runs:  ## delete runs, models and reports; data/01_raw stays
	find data -mindepth 2 ! -path 'data/01_raw/*' ! -name .gitkeep ! -name '*.dvc' ! -type d -delete
	find data -mindepth 2 ! -path 'data/01_raw/*' -type d -empty -delete
	rm -rf mlflow.db mlflow.db-* mlruns mlartifacts
