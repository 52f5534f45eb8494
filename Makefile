# Every target sets up what it needs; a second run of the set-up takes under two seconds.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
DEVICE ?= auto
export MODISTE_HOME ?= $(CURDIR)/.modiste
# images of Python often set it; hundreds of processes would each compile torch and vLLM
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
UV := .venv/bin/uv
SETUP := $(PYTHON) scripts/setup.py --device $(DEVICE)
LOCK := $(UV) pip compile -q --generate-hashes --python-version 3.11 --python-platform linux

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-slow check format bench bench-check loadtest test-helm test-image test-cluster audit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install everything into .venv and add the default base model
	@$(SETUP)

setup-dev:
	@$(SETUP) --dev

demo: setup ## customise the base model twice on real data and serve both (about 15 minutes)
	@$(PY) -m demo

# pytest ends with 5 where ARGS leave one of the two nothing to run
test: check ## lint, type-check and run the tests, those first that can share the cores
	@$(PY) -m pytest -m "not alone and not slow" -n auto --maxprocesses 9 --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? = 5 ]
	@$(PY) -m pytest -m "alone and not slow" $(ARGS) || [ $$? = 5 ]

test-slow: setup-dev ## the tests that `make test` leaves out: several servers, servers that die, Ray
	@$(PY) -m pytest -m slow $(ARGS)

check: setup-dev ## lint, format and type checks, and who may import whom
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup-dev ## let ruff format and repair what it can
	@.venv/bin/ruff check --fix-only .
	@.venv/bin/ruff format .

bench-%: setup-dev ## run one benchmark, for example bench-overhead (QUICK=1: short form)
	@$(PY) -m bench $*

bench: setup-dev ## run all benchmarks, rewrite docs/benchmarks.md, add to its history
	@$(PY) -m bench --all

bench-check: setup-dev ## fail when a ratio fell by more than its noise since earlier benchmarks
	@$(PY) -m bench --check

loadtest: setup ## load a running server: SCENARIO=chat HOST=http://… ARGS="--workers 2"
	@.venv/bin/modiste loadtest $(if $(HOST),--host $(HOST)) $(if $(SCENARIO),--scenario $(SCENARIO)) $(ARGS)

test-helm: setup-dev ## lint, render and validate the chart
	@$(PY) -m pytest -m "not slow" tests/helm $(ARGS)

test-image: setup-dev ## build the CPU image with buildah, start it and ask it (needs root)
	@$(PY) -m pytest tests/helm/test_image.py $(ARGS)

test-cluster: setup-dev ## several servers behind HAProxy, under load, while parts of it come and go
	@$(PY) -m pytest -s tests/cluster $(ARGS)

audit: setup-dev ## look for known vulnerabilities of what is locked (ARGS are those of pip-audit)
	@$(PY) scripts/audit.py $(ARGS)

lock: setup ## resolve requirements/*.in again (ARGS=--upgrade for newer versions)
	@$(LOCK) requirements/cpu.in --override requirements/overrides.txt -o requirements/cpu.txt $(ARGS)
	@$(LOCK) requirements/dev.in -c requirements/cpu.txt --override requirements/overrides.txt -o requirements/dev.txt $(ARGS)
	@$(LOCK) requirements/gpu.in -o requirements/gpu.txt $(ARGS)
	@$(LOCK) requirements/installer.in -o requirements/installer.txt $(ARGS)
	@$(LOCK) requirements/base-model.in --no-deps -o requirements/base-model.txt $(ARGS)

clean: ## remove .venv, build and caches; bases, versions and runs in MODISTE_HOME stay
	rm -rf .venv build *.egg-info .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
