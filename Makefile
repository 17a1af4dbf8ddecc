# The two commands that matter: `make demo` and `make check`. Both prepare .venv themselves; neither asks anything.
.DEFAULT_GOAL := help
.PHONY: help demo check check-slow check-gpu attack bench format test docs clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CHECKED := .venv/.installed-dev
CHECKED_SLOW := .venv/.installed-dev-slow

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED)  ## Train, evaluate and use a tiny CLIP, in under three minutes on two cores
	@$(BIN)/diptych demo

check: $(CHECKED)  ## Everything that must hold: format, lint, layers, types, tests, docs, examples
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@for example in examples/*.py; do echo "$$example"; $(BIN)/python $$example > /dev/null || exit 1; done
	@echo "check: all is well"

check-slow: attack $(CHECKED_SLOW)  ## The attack, and the tests that take up to a minute each: a run that is killed again and again, a compiled one (needs g++)
	$(BIN)/python -m pytest -m slow

DEVICE ?= cuda

check-gpu: $(CHECKED)  ## The GPU tests, in under four minutes; DEVICE=cpu runs only those that can run on a CPU
	DIPTYCH_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest -m gpu --durations=5 tests/gpu

attack: $(CHECKED)  ## Mutated pictures, hostile requests and flipped bits; what must hold is in docs/security.md
	$(BIN)/python -m tests.attack

FLICKR8K ?= flickr8k
CIFAR10 ?= cifar10_jpeg.zip
PHOTOS ?= photos
BENCH = $(BIN)/python benchmarks/$(1).py --out benchmarks/results/$(1).md

bench: $(CHECKED)  ## Measure against the live peers, on a quiet machine: make bench FLICKR8K=DIR CIFAR10=FILE PHOTOS=DIR
	$(call BENCH,train_step) --flickr $(FLICKR8K) --cifar $(CIFAR10)
	$(call BENCH,train_command) --flickr $(FLICKR8K)
	$(call BENCH,inference) --flickr $(FLICKR8K)
	$(call BENCH,zero_shot)
	$(call BENCH,tokenizer) --captions $(FLICKR8K)/results.csv
	$(call BENCH,search)
	$(call BENCH,growth)
	$(call BENCH,data) --photos $(PHOTOS) --source flickr8k:$(FLICKR8K)
	$(call BENCH,loss)
	$(call BENCH,serve)
	$(call BENCH,start_up)
	$(call BENCH,light)

format: $(CHECKED)  ## Format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(CHECKED)  ## Serve the documentation with live reload
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:  ## Remove what the other targets made, but for runs/
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Diptych needs Python 3.11 or newer; name one with PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv || { echo "No venv module: on Debian and Ubuntu, apt-get install python3-venv" >&2; rm -rf .venv; exit 2; }

$(INSTALLED): .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,serve]'
	@touch $@

$(CHECKED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# A peer of the tests. Of what it asks for, its retrieval needs nothing more; one part of the rest is a hundred megabytes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps clip_benchmark
	@touch $@

$(CHECKED_SLOW): $(CHECKED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev-slow]'
	@touch $@
