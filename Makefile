# Every target makes its own .venv first, with the newest Python that runs and can make one, pyenv's included. PYTHON
# chooses another: make test PYTHON=python3.12
SHELL := /bin/bash
PYTHON ?= $(or $(call first_working,3.13 3.12 3.11),python3)
OLDEST ?= $(or $(call first_working,3.11),python3.11)
first_working = $(shell for v in $(1); do \
  for python in python$$v "$$(pyenv prefix $$v 2>/dev/null)/bin/python$$v"; do \
    "$$python" -c 'import ensurepip, venv' 2>/dev/null && echo "$$python" && exit; done; done)
BIN := .venv/bin
STAMP := .venv/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# JupyterLab refuses to run as root unless told.
LAB_FLAGS ?= $(if $(filter 0,$(shell id -u)),--allow-root)
AT_LEAST_311 := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help demo test oldest python screenshots lab check docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## plan, run and measure the gradient of a 12-layer GPT; results in build/demo/
	$(BIN)/python -m benchmarks.demo

test: check ## run all checks, tests, docstring examples and notebooks
	$(BIN)/python -m pytest -n 2 --dist loadgroup --doctest-modules tests tiny_backprop widgets/tiny_backprop_widgets

oldest: .venv-oldest/.installed ## run the tests of core and integration on the oldest versions: Python 3.11, JAX 0.10
	.venv-oldest/bin/python -m pytest -n 2 --dist loadgroup --doctest-modules tests tiny_backprop \
	  --ignore tests/browser --ignore tests/widgets --ignore tests/test_notebooks.py

screenshots: $(STAMP) ## write pictures of the explorer, light and dark, into build/screenshots/; needs chromium
	$(BIN)/python -m benchmarks.screenshots

lab: $(STAMP) ## open the first notebook in JupyterLab
	$(BIN)/jupyter lab $(LAB_FLAGS) $(wildcard notebooks/1-*.ipynb)

python: # prints the interpreter that .venv is made with
	@echo $(PYTHON)

check: $(STAMP) ## lint, format, types, import layers, JavaScript, notebooks without outputs, docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/biome check
	$(if $(shell command -v tsc),tsc -p jsconfig.json)
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS))
	$(MAKE) --no-print-directory docs

docs: $(STAMP) ## build the documentation into build/docs/; any warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

clean: ## remove the environment, builds and caches
	rm -rf .venv .venv-oldest build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c '$(AT_LEAST_311)' 2>/dev/null || { \
	  echo "tiny_backprop needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test ! -e .venv || $(BIN)/python -c '$(AT_LEAST_311)' 2>/dev/null || { \
	  echo ".venv is broken or has a Python older than 3.11: remove it with 'make clean' and try again." >&2; exit 1; }
	test -e .venv || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebooks,test,docs]'
	@touch $@

.venv-oldest/.installed: pyproject.toml
	test -e .venv-oldest || $(OLDEST) -m venv .venv-oldest || { rm -rf .venv-oldest; exit 1; }
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' 'jax==0.10.*' 'jaxlib==0.10.*'
	@touch $@
