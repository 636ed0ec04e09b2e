# What people do here. Every target works on a fresh clone with Python 3.11+, make and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/installed-run
DEV := $(VENV)/installed-dev
ORACLE := .venv-oracle/installed
STUDY ?= quickstart
OUT ?= runs/$(notdir $(basename $(STUDY)))
PIP := pip install --disable-pip-version-check --quiet
TEST_RUN := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
.DEFAULT_GOAL := help
.PHONY: help setup compare test test-fast oracle check format screenshot examples lock clean

help:             ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone, so that the pinned CPU build is chosen and nothing pulls another one
$(RUN): $(VENV)/created pyproject.toml constraints.txt
	@echo "installing monosem into $(VENV) (about two minutes the first time)"
	$(BIN)/$(PIP) torch==2.13.0
	$(BIN)/$(PIP) -c constraints.txt hatchling editables
	$(BIN)/$(PIP) -c constraints.txt --no-build-isolation -e .
	@touch $@

$(DEV): $(RUN)
	@echo "installing the development tools into $(VENV)"
	$(BIN)/$(PIP) -c constraints.txt pytest pytest-xdist hypothesis ruff pyright import-linter playwright datasets
	@touch $@

setup: $(DEV)     ## create .venv and install everything for development

compare: $(RUN)   ## run a study and write its report (STUDY=quickstart OUT=runs/quickstart)
	$(BIN)/monosem compare $(STUDY) --out $(OUT)

test: $(DEV)      ## the whole test suite
	$(TEST_RUN) -n 2 --dist worksteal -m "not oracle"

test-fast: $(DEV) ## the tests that take no embedded model, no browser and no long training
	$(TEST_RUN) -n 2 --dist worksteal -m "not oracle and not slow and not browser and not lm"

# dictionary-learning asks for torchvision, whose released builds don't load beside the CPU build of torch
$(ORACLE): pyproject.toml constraints-oracle.txt
	test -d .venv-oracle || $(PYTHON) -m venv .venv-oracle
	@echo "installing the oracles into .venv-oracle (some minutes the first time)"
	.venv-oracle/bin/$(PIP) torch==2.13.0
	.venv-oracle/bin/$(PIP) -c constraints-oracle.txt hatchling editables
	.venv-oracle/bin/$(PIP) -c constraints-oracle.txt --no-build-isolation -e .
	.venv-oracle/bin/$(PIP) -c constraints-oracle.txt pytest hypothesis accelerate sae-lens dictionary-learning xllamacpp
	.venv-oracle/bin/pip uninstall --quiet --yes torchvision
	@touch $@

oracle: $(ORACLE) ## compare with independent libraries (sae-lens, dictionary-learning, llama.cpp), in .venv-oracle
	OMP_NUM_THREADS=2 .venv-oracle/bin/python -m pytest -m oracle tests/oracle

check: $(DEV)     ## format, lint, types, import layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(DEV)    ## format and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

screenshot: $(DEV) ## docs/report.png from the report of OUT, in headless Chromium
	$(BIN)/python -m monosem.report.screenshot $(OUT)/report.html docs/report.png --width 1280 --height 800

examples: $(DEV)  ## run every example
	for example in examples/*.py; do echo "$$example"; $(BIN)/python "$$example" || exit 1; done

lock: $(DEV)      ## write constraints.txt from what is installed (after a deliberate upgrade)
	grep '^#' constraints.txt > constraints.new
	$(BIN)/pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' >> constraints.new
	mv constraints.new constraints.txt

clean:            ## remove what make made
	rm -rf $(VENV) .venv-oracle runs .pytest_cache .ruff_cache .hypothesis
