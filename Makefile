# Every target makes .venv first; a second call spends no time on installation.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported when it is: a third of the time that compiling all of it here would take.
PIP := $(BIN)/pip install --quiet --no-compile -c infra/constraints.txt
SIDE_BY_SIDE := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
READY := $(VENV)/installed
DEV_READY := $(VENV)/installed-dev
export OMP_NUM_THREADS ?= 1
# Empty: compiled modules are kept, whatever the shell says.  pip compiles none of them here, and without keeping them
# each of Ray's processes would compile torch, ray and deepspeed anew, ten seconds of CPU a process.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch first: with it in place plain pip builds DeepSpeed from its source in seconds, and nothing pulls another torch.
$(READY): infra/constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools
	$(PIP) --no-build-isolation -e '.[cluster,evaluation,serve]'
	@touch $(READY)

$(DEV_READY): $(READY)
	$(PIP) --no-build-isolation -e '.[cluster,evaluation,serve,dev]'
	@touch $(DEV_READY)

install: $(DEV_READY)  ## make .venv, tools for developers included

quickstart: $(READY)  ## the whole job on the toy world: datasets, shards, training, tracked evaluation
	$(BIN)/python -m jobs.quickstart

serve: $(READY)  ## a page to click on, with what the quickstart has trained
	$(BIN)/python -m jobs.serve jobs/configs/serve_quickstart.yaml

unit: $(DEV_READY)  ## unit tests alone, side by side
	$(SIDE_BY_SIDE) -m 'not slow and not gpu and not cluster' tests/unit

test: unit  ## unit tests and one end-to-end test
	$(BIN)/python -m pytest -m 'cluster and not slow'

test-all: test  ## everything that runs without a GPU
	$(SIDE_BY_SIDE) -m 'slow and not gpu and not cluster' tests/unit
	$(SIDE_BY_SIDE) -m 'not gpu' tests/numerics
	$(BIN)/python -m pytest -m 'not gpu and not nodes and (slow or not cluster)' --durations=30 tests/integration

cluster: $(DEV_READY)  ## trainings that lose and gain machines, an autoscaler and its machines; ten minutes
	$(BIN)/python -m pytest -m nodes tests/integration

check: $(DEV_READY)  ## format, lint, types, import rules, links of the documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.links

format: $(DEV_READY)  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV_READY)  ## measure the hot paths; prints ratios taken in one run
	failed=; for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

pictures: $(DEV_READY)  ## the READMEs' pictures, drawn anew from what the quickstart has left
	$(BIN)/python -m tests.readme_pictures outputs/quickstart mlflow.db .github

claims: $(READY)  ## three claims of the paper at toy scale, as tables; over an hour; a second call goes on
	$(BIN)/python tests/benchmarks/claims.py

chaos: $(DEV_READY)  ## kill workers, machines, heads, S3 at seeded moments and see whether jobs end as if undisturbed; over an hour
	$(BIN)/python tests/chaos/killed_jobs.py

clean:  ## remove what the targets made, the virtual environment excepted
	rm -rf .quickstart outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info

.PHONY: help install quickstart serve unit test test-all cluster check format bench pictures claims chaos clean
