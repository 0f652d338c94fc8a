# Both `make demo` and `make test` set themselves up: a virtual environment in .venv, torch, this package.
PYTHON ?= python3
VENV   ?= .venv
# Extra pip arguments for torch, for instance the smaller builds without CUDA:
#   make test TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=

# Each file of tests runs in one of as many processes as there are processors; each test computes with one thread.
# A process that crashes ends the run, as a failure: with another in its place pytest-xdist (3.8) waits for ever.
PYTEST_ARGS ?= -n auto --dist loadfile
PYTEST = $(BIN)/python -m pytest --max-worker-restart=0 $(PYTEST_ARGS)

# What computes: models, steps of training and search, export and INT8.
CORE := tests/deploy tests/models $(addprefix tests/train/test_, augment.py ema.py evaluate.py metrics.py optim.py run.py) \
  $(addprefix tests/search/test_, arch_params.py arch_optimizers.py constraints.py gates.py init.py objective.py quick.py reinforce.py supernet.py toy.py tree.py)

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-avx2 lint format docs proofs wheel clean
.DELETE_ON_ERROR:

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/ready  ## photos through a real model, the model learns digits, a model is searched; no network
	@$(BIN)/python examples/demo.py
	@$(BIN)/python examples/search_model.py

test: lint  ## lint, check types, run the tests
	$(BIN)/python -m mypy proxylessnas
	$(PYTEST)

test-avx2: $(VENV)/ready  ## the tests of what computes, as on a processor without AVX-512
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) $(CORE)

lint: $(VENV)/ready  ## check style, format and which room imports which
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(VENV)/ready  ## put the code in shape
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(VENV)/with-docs  ## build the documentation into build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

proofs: $(VENV)/ready  ## what is too slow for the tests: kills, throughput, targets; see benchmarks/results
	$(BIN)/python benchmarks/kill_and_resume.py --kills 20
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/train_throughput.py --malloc
	$(BIN)/python benchmarks/search_targets.py
	$(BIN)/python benchmarks/latency_tables.py

wheel: $(VENV)/ready  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build

clean:  ## remove everything the targets above made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so a set-up that was interrupted starts again.
$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "error: no virtual environment could be made; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing torch and torchvision (once; this takes a few minutes on a slow line)"
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) torch torchvision
	@touch $@

$(VENV)/ready: $(VENV)/torch setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/with-docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
