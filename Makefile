# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv by themselves.
#
#   make test       everything that CI runs: lint, the docs, all tests
#   make quick      the tests that are not marked slow
#   make matrix     every source of every architecture and every pruned family on every engine; `make test` takes a part
#   make coverage   all tests, and the lines and branches that they do not reach
#   make format     what ruff can put right by itself
#
#   PYTHON=python3.12       another interpreter (3.10 to 3.14)
#   DATA=DIR                recordings with a transcripts.tsv for calibration and the word error rate
#   PIP_FLAGS=...           more for pip, for example the index of torch's CPU build, which saves gigabytes of CUDA

PYTHON ?= python3
DATA ?= ../shared/data
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
WEIGHTS := edgeattn/models/streaming_conformer/assets
DATA_FLAG = $(if $(wildcard $(DATA)),--data $(DATA))

PYTEST := -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test quick matrix coverage lint format docs bench wheels clean venv

demo: $(STAMP)
	$(BIN)/edgeattn demo --out out --plot out/table.svg $(DATA_FLAG)

test: lint docs
	$(BIN)/python $(PYTEST)

quick: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not slow"

matrix: $(STAMP)
	$(BIN)/python $(PYTEST) --whole-matrix tests/acceptance/test_matrix.py \
	  tests/acceptance/test_pruned_families.py tests/acceptance/test_sentence_encoder.py

coverage: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --sort=cover --skip-covered

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Not --quiet: it hides warnings from --strict, too. The notice that is switched off is of the theme about its successor.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python benchmarks/tool_speed.py $(DATA_FLAG)
	$(BIN)/python benchmarks/convert_cost.py
	$(BIN)/edgeattn convert --target cpu --out out/bench --force $(DATA_FLAG)
	$(BIN)/python benchmarks/push_overhead.py out/bench/streaming-conformer.cpu.edge
	$(if $(DATA_FLAG),$(BIN)/python benchmarks/word_error.py $(DATA_FLAG))

# Built from what is here now: setuptools would put what an earlier build left in build/ into a wheel.
wheels: $(STAMP)
	rm -rf build dist $(WEIGHTS)/build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . ./$(WEIGHTS)
	rm -rf build $(WEIGHTS)/build $(WEIGHTS)/*.egg-info

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 14) else \
	  "edgeattn is tested on Python 3.10 to 3.14, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[all,dev,docs]'
	touch $@

clean:
	rm -rf .venv .coverage .coverage.* build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
