# make demo | test | test-slow | lint | ui | bench | bench-readme | images | sbom | rehearse | clean. Each bootstraps .venv
# from nothing but python3 >= 3.11 with venv and pip.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell command -v uv),.uv/bin/uv)
READY := .venv/.ready

# A sweep is a dozen processes that import torch, Ray and timm; without bytecode each compiles them anew, 5 to 10 s a piece.
export PYTHONDONTWRITEBYTECODE :=

help:
	@sed -n '1,2s/^# //p' Makefile

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet uv

$(READY): requirements.lock pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

venv: $(READY)

# The locked versions: refresh with `make lock`. No index address is recorded, so any mirror serves it. The images get
# their part of it.
LOCK = $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11
lock: | $(UV)
	$(LOCK) --upgrade --all-extras pyproject.toml -o requirements.lock
	$(LOCK) --constraint requirements.lock --extra server --extra lora pyproject.toml -o ops/docker/sweep.lock
	$(LOCK) --constraint requirements.lock ops/docker/tools.in -o ops/docker/tools.lock

# The whole sweep on the embedded model and data. Running it again shows the report of what is there.
demo: $(READY)
	$(BIN)/python sweeps/vit_components.py experiment=demo

# On two cores: a file to one of two processes, the tests that need Ray to one of them, first. WORKERS=0: in this one.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m "not slow and not real"

# What rightly takes minutes: sweeps that are killed and go on, the paper's command, real weights and images.
test-slow: $(READY)
	$(PYTEST) -m "slow or real"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The MLflow page of the sweeps in ./mlflow.db, or at MLFLOW_TRACKING_URI, on http://127.0.0.1:5000
ui: $(READY)
	$(BIN)/python ops/ui.py

# Every benchmark, small; one that fails is named at the end and stops none of the others.
bench: $(READY)
	failed=; for script in ops/bench/*.py; do \
		echo "== $$script"; $(BIN)/python $$script || failed+=" $$script"; \
	done; if test -n "$$failed"; then echo "failed:$$failed" >&2; exit 1; fi

# ops/bench/README.md, and the figures in README.md, from ops/bench/results/*.json
bench-readme: $(READY)
	$(BIN)/python ops/bench/figures/readme.py

# The Kubernetes deployment on this machine, with podman in Kubernetes' place: Debian, as root.
rehearse: $(READY)
	$(BIN)/python ops/rehearse

# The images of k8s/, tagged with the locked Ray and the commit: REGISTRY=registry.example.com/ and ENGINE=podman where needed,
# BUILD="--build-arg TORCH_INDEX=…" (PyTorch's index of CPU builds) for nodes without a GPU. Podman's own format has no SHELL.
ENGINE ?= docker
FORMAT = $(if $(findstring podman,$(ENGINE)),--format docker)
REGISTRY ?=
BUILD ?=
TAG = ray-$(shell sed -n 's/^ray==\([^ ]*\).*/\1/p' requirements.lock)
REVISION = $(shell git rev-parse HEAD)$(shell git diff --quiet HEAD || echo -dirty)
images:
	for image in unfreeze:Dockerfile unfreeze-tools:tools.Dockerfile; do \
		name=$(REGISTRY)$${image%%:*}; \
		$(ENGINE) build $(FORMAT) $(BUILD) --build-arg REVISION=$(REVISION) --file ops/docker/$${image##*:} \
			--tag $$name:$(TAG) --tag $$name:$(TAG)-$(shell git rev-parse --short=12 HEAD) .; \
	done

# What is in the images, as CycloneDX: dist/unfreeze.cdx.json, dist/unfreeze-tools.cdx.json
sbom: $(READY)
	$(BIN)/python ops/docker/sbom.py

# What the demo made; the environment and the decoded-image cache stay.
clean:
	rm -rf runs mlflow.db mlartifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help venv lock demo test test-slow lint ui bench bench-readme images sbom rehearse clean
