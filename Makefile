# Everything runs in .venv, made on first use; a second call installs nothing.
PYTHON ?= python3
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

# One thread per process: the tests and builds run in parallel processes, and timings compare.
export OMP_NUM_THREADS := 1
export MPLBACKEND := Agg

.PHONY: demo test lint docs bench clean

demo: $(VENV)/with-plot  ## reconstruct photographs with every method: a table and demo.png
	$(BIN)/python examples/demo.py

test: $(VENV)/with-test  ## tests and the examples in the docstrings
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist loadfile

lint: $(VENV)/with-test  ## style, types, docstrings, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_public_api.py -k docstrings
	$(BIN)/codespell

docs: $(VENV)/with-docs  ## the pages in docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: $(VENV)/with-plot,ct $(VENV)/asv  ## the numbers of the docs: benchmarks/results/*.json
	set -e; for script in $(wildcard benchmarks/bench_*.py); do echo "$$script"; $(BIN)/python $$script; done
	$(BIN)/asv machine --yes
	$(BIN)/asv run --python=same --quick --show-stderr

clean:  ## everything that these targets made
	rm -rf $(VENV) .asv .mypy_cache .ruff_cache .pytest_cache *.egg-info build dist demo.png
	rm -rf docs/_build docs/api docs/gallery docs/sg_execution_times.rst

# torch comes first and alone, so that the build already chosen here satisfies whatever asks for it later.
$(VENV)/base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	touch $@

# The package, editable, with the extras named after "with-".
$(VENV)/with-%: $(VENV)/base pyproject.toml
	$(INSTALL) --editable ".[$*]"
	touch $@

$(VENV)/asv: $(VENV)/base
	$(INSTALL) asv
	touch $@
