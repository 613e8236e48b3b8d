# The first call of any target builds .venv once, from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(addprefix tests/,cells recurrence stability truncation diagnostics linalg test_checks.py test_copying.py)
STAMP := $(VENV)/.installed

.PHONY: demo test test-core test-slow test-faults test-torchtext test-thirdparty test-oldest package lint types docs \
	bench bench-gpu clean
demo: $(STAMP)  ## train an unconstrained and a stable LSTM with their twins (about 4 minutes)
	$(BIN)/lightning-stable demo

test: $(STAMP)  ## the fast test suite, on all cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow and not gpu and not thirdparty"

test-core: $(STAMP)  ## a verdict on the core, within a minute
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -q -m "not slow and not gpu" $(CORE)

test-slow: $(STAMP)  ## everything this machine can run
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not thirdparty"

test-faults: $(STAMP)  ## interrupts runs everywhere, resumes them and prints how many end equal
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/faults/test_ranks.py

TORCHTEXT := .venv-torchtext
test-torchtext: $(TORCHTEXT)/.installed  ## the text data modules with the real torchtext, in its own environment (5 GB)
	OMP_NUM_THREADS=1 $(TORCHTEXT)/bin/pytest tests/datamodules/test_torchtext.py tests/datamodules/test_text.py

$(TORCHTEXT)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCHTEXT)
	$(TORCHTEXT)/bin/python -m pip install --quiet --upgrade pip
	grep -v '^torch==' constraints.txt > $(TORCHTEXT)/constraints.txt
	$(TORCHTEXT)/bin/python -m pip install --quiet --constraint $(TORCHTEXT)/constraints.txt --editable '.[torchtext]' pytest hypothesis
	touch $(TORCHTEXT)/.installed

THIRDPARTY := .venv-thirdparty
test-thirdparty: $(THIRDPARTY)/.installed  ## models of other packages, in an environment of their own (2 GB)
	OMP_NUM_THREADS=1 $(THIRDPARTY)/bin/python -m pytest tests/thirdparty

# The torch of constraints.txt first, as these packages would bring another build of it.
$(THIRDPARTY)/.installed: pyproject.toml constraints.txt tests/thirdparty/requirements.txt
	$(PYTHON) -m venv $(THIRDPARTY)
	$(THIRDPARTY)/bin/python -m pip install --quiet --upgrade pip
	$(THIRDPARTY)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(THIRDPARTY)/bin/python -m pip install --quiet --constraint constraints.txt --requirement tests/thirdparty/requirements.txt --editable . pytest
	$(THIRDPARTY)/bin/python -m pip install --quiet --no-deps kraken==7.1.1
	touch $(THIRDPARTY)/.installed

OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed  ## the core, the callbacks and the models with the oldest versions, in their own environment (5 GB)
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -m "not slow and not gpu" $(CORE) tests/callbacks tests/models \
		--ignore tests/callbacks/test_pytorch_lightning.py

# Set PYTHON to one that torch 2.3 was built for: 3.10, 3.11 or 3.12.
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[capacity,slots]' hypothesis pytest pytorch-lightning
	touch $(OLDEST)/.installed

PACKAGE := .venv-package
package: $(PACKAGE)/tools/.installed  ## wheel and sdist in dist/, checked; the README's code runs where only the wheel is
	rm -rf dist
	$(PACKAGE)/tools/bin/python -m build
	$(PACKAGE)/tools/bin/twine check --strict dist/*
	$(PACKAGE)/tools/bin/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv --clear $(PACKAGE)/clean
	$(PACKAGE)/clean/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	rm -rf $(PACKAGE)/empty && mkdir $(PACKAGE)/empty
	cd $(PACKAGE)/empty && OMP_NUM_THREADS=1 ../clean/bin/python -I ../../tests/package/quick_start.py

$(PACKAGE)/tools/.installed: tests/package/requirements.txt
	$(PYTHON) -m venv $(PACKAGE)/tools
	$(PACKAGE)/tools/bin/python -m pip install --quiet --upgrade pip
	$(PACKAGE)/tools/bin/python -m pip install --quiet --requirement tests/package/requirements.txt
	touch $(PACKAGE)/tools/.installed

lint: $(STAMP)  ## style, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)  ## the documentation as a site, build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## ratios, both sides interleaved, one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

bench-gpu: $(STAMP)  ## what one GPU has to show, under ten minutes: runs/gpu.json and runs/gpu.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) $(TORCHTEXT) $(THIRDPARTY) $(OLDEST) $(PACKAGE) runs build dist *.egg-info

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed. Got %d.%d; set PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)
