# What people do here. Every target works on a fresh clone with Python 3.11+, make and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/installed-run
DEV := $(VENV)/installed-dev
ORACLE := .venv-oracle/installed
STUDY ?= quickstart
OUT ?= runs/$(notdir $(basename $(STUDY)))
BENCH_SECONDS ?= 60
BENCH_VARIANTS ?= standard tanh gated topk topk-auxk
BENCH_WIDTHS ?= 4608 16384 65536
BENCH_OPTIONS ?=
FUZZ_FILES ?= 100000
FUZZ_WORKERS ?= 2
PIP := pip install --disable-pip-version-check --quiet
TEST_RUN := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
.DEFAULT_GOAL := help
.PHONY: help setup compare test test-fast oracle bench bench-growth fuzz check format screenshot examples notebook lock clean

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
	$(BIN)/$(PIP) -c constraints.txt pytest pytest-xdist hypothesis ruff pyright import-linter playwright httpx2 datasets tensorboard \
		nbclient nbformat ipykernel "ray[data,train]" s3fs "moto[server]" accelerate "triton; platform_system == 'Linux'"
	@touch $@

setup: $(DEV)     ## create .venv and install everything for development

compare: $(RUN)   ## run a study and write its report (STUDY=quickstart OUT=runs/quickstart)
	$(BIN)/monosem compare $(STUDY) --out $(OUT)

test: $(DEV)      ## the whole test suite
	$(TEST_RUN) -n 2 --dist worksteal -m "not oracle"

test-fast: $(DEV) ## the tests that take no embedded model, no browser and no long training
	$(TEST_RUN) -n 2 --dist worksteal -m "not oracle and not slow and not browser and not lm"

# .venv-oracle sees what lies in $(VENV) and adds only what that lacks. Nothing is resolved (--no-deps): the list has
# what gets imported. It leaves out torchvision, whose released builds don't load beside the CPU build of torch.
# triton is there too, with which eai-sparsify would decode by a kernel that needs a GPU, unless told not to.
$(ORACLE): $(VENV)/created requirements-oracle.txt | $(DEV)
	@echo "installing the oracles into .venv-oracle, on top of $(VENV)"
	$(BIN)/python -m venv --clear --without-pip .venv-oracle
	$(BIN)/python -c "import sysconfig as s; print('import os, site; site.addsitedir(%r); os.environ.setdefault(%r, %r)' \
		% (s.get_path('purelib'), 'SPARSIFY_DISABLE_TRITON', '1'))" \
		> $$(.venv-oracle/bin/python -c "import sysconfig as s; print(s.get_path('purelib'))")/venv.pth
	.venv-oracle/bin/python -m $(PIP) --no-deps -r requirements-oracle.txt
	.venv-oracle/bin/python -c "import sae_lens, dictionary_learning.trainers.top_k, sparsify, accelerate, xllamacpp"
	@touch $@

oracle: $(ORACLE) ## compare with independent libraries (sae-lens, dictionary-learning, llama.cpp), in .venv-oracle
	OMP_NUM_THREADS=2 .venv-oracle/bin/python -m pytest -m oracle tests/oracle

# one process for each variant, width and number of threads (variant:threads); the table comes last
bench: $(ORACLE)  ## time training steps beside other libraries (BENCH_SECONDS=60), into benchmarks/results
	@for width in $(BENCH_WIDTHS); do for what in $(BENCH_VARIANTS:=:1) $(filter topk:2,$(BENCH_VARIANTS:=:2)); do \
		variant=$${what%:*}; threads=$${what#*:}; echo "$$variant, d_sae $$width, threads $$threads"; \
		.venv-oracle/bin/python benchmarks/train_step.py --variant $$variant --d-sae $$width --threads $$threads \
			--peers all --seconds $(BENCH_SECONDS) $(BENCH_OPTIONS) \
			--json benchmarks/results/$$variant-$$width-$$threads.json > /dev/null || exit 1; \
	done; done
	@.venv-oracle/bin/python benchmarks/table.py

bench-growth: $(ORACLE) $(DEV) ## cost against the width (2^12 to 2^17), and docs/training-cost.svg from all results
	.venv-oracle/bin/python benchmarks/growth.py --seconds $(BENCH_SECONDS) $(BENCH_OPTIONS) \
		--json benchmarks/results/growth.json
	$(BIN)/python benchmarks/figure.py docs/training-cost.svg

fuzz: $(DEV)      ## read 100,000 damaged files of every format (FUZZ_FILES, FUZZ_WORKERS=2), which takes minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz_formats.py --files $(FUZZ_FILES) --workers $(FUZZ_WORKERS)

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

examples: $(DEV)  ## run every example and the notebook
	for example in examples/*.py; do echo "$$example"; $(BIN)/python "$$example" || exit 1; done
	$(BIN)/jupyter-execute examples/foreign_sae.ipynb

notebook: $(DEV)  ## run the notebook and keep what it puts out
	$(BIN)/python -c "import nbclient, nbformat; book = nbformat.read('examples/foreign_sae.ipynb', 4); \
		nbclient.NotebookClient(book, record_timing=False, resources={'metadata': {'path': 'examples'}}).execute(); \
		nbformat.write(book, 'examples/foreign_sae.ipynb')"

lock: $(DEV)      ## write constraints.txt from what is installed (after a deliberate upgrade)
	grep '^#' constraints.txt > constraints.new
	$(BIN)/pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' >> constraints.new
	mv constraints.new constraints.txt

clean:            ## remove what make made
	rm -rf $(VENV) .venv-oracle runs .pytest_cache .ruff_cache .hypothesis
