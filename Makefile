# make demo | test | lint | ui | bench | clean. Each bootstraps .venv from nothing but python3 >= 3.11 with venv and pip.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell command -v uv),.uv/bin/uv)
READY := .venv/.ready

help:
	@sed -n '1s/^# //p' Makefile

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet uv

$(READY): requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

venv: $(READY)

# The locked versions: refresh with `make lock`. No index address is recorded, so any mirror serves it.
lock: | $(UV)
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --python-version 3.11 --all-extras pyproject.toml -o requirements.lock

.PHONY: help venv lock
