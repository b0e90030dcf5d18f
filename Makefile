# airserve: `make demo` runs the main job, `make test` the tests. Both set up what is missing.
PYTHON ?= python3.11
SIZE ?= 1.0
DATA ?=
PORT ?= 8001
ARGS ?=

.PHONY: help demo test test-all lint setup serve repository
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## create .venv (vLLM, torch, clients) and .venv-triton (the server); a second run takes a second
	@command -v $(PYTHON) >/dev/null || { echo "make: expected $(PYTHON) on PATH; install Python 3.11 or give PYTHON=..." >&2; exit 2; }
	@$(PYTHON) requirements/install.py

demo: setup ## the main job, end to end; DATA=folder runs it on your own items and behaviours, SIZE scales the world
	@.venv/bin/python clients/run_demo.py --size $(SIZE) $(if $(DATA),--data $(DATA))

test: setup ## all tests that fit into 15 minutes on 2 cores, with the real Triton and the real vLLM
	@$(PYTHON) requirements/install.py --checks
	@.venv/bin/python -m pytest -m "not slow and not gpu"

test-all: setup ## the slow ones too
	@$(PYTHON) requirements/install.py --checks
	@.venv/bin/python -m pytest

lint: setup ## ruff and mypy --strict
	@.venv/bin/ruff check src offline build clients perf tests requirements
	@.venv/bin/ruff format --check src offline build clients perf tests requirements
	@.venv/bin/mypy

serve: setup ## serve the demo's repository on gRPC port $(PORT); ARGS for certificates, limits, traces
	@.venv/bin/python clients/serve_repository.py --grpc-port $(PORT) $(ARGS)

repository: setup ## regenerate the committed model_repository/
	@.venv/bin/python build/write_repository.py --static --out model_repository
