# make demo: train a network on real images
# make test: lint, and a sample of the cases with every kind in it; make test-rest: the cases that it left out
# make test-all: all cases; make test-machines: the numeric ones as other processors and other threads compute them
# make test-floors: a part of them with the oldest versions that pyproject.toml allows, in a second environment (7 GB)
# make check: lint and the fast tests; make timm-suite: timm's tests of models, with ours
# make docs: the site in site/, with the API reference; python3 -m http.server -d site shows it
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# One thread per worker, which conftest.py asks of torch, too; groups of tests move to the worker that is free.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal
# Each test here compares numbers; the other folders are about files, words and processes.
NUMERIC := tests/nn tests/optim tests/kernels tests/models tests/weights tests/export tests/spp tests/tasks \
	tests/test_functional.py tests/test_gain.py tests/data/test_resize.py tests/data/test_randaugment.py
MACHINES := avx2 no-avx no-kernels 2-threads 8-threads

.PHONY: demo test test-rest test-all test-floors test-machines $(MACHINES:%=test-on-%) check timm-suite docs lint format clean

demo: $(INSTALLED)
	$(VENV)/bin/normfree train

test: $(INSTALLED) lint
	$(PYTEST)

# BUDGET=600: no test starts after so many seconds
test-rest: $(INSTALLED)
	$(PYTEST) --cases rest $(if $(BUDGET),--budget $(BUDGET))

test-all: $(INSTALLED) lint
	$(PYTEST) --cases all
	$(MAKE) test-floors

# What depends on versions most: files in and out, recipes, the command, and a run from its start to its export.
FLOORS := .venv-floors
FLOOR_TESTS := tests/data tests/recipes tests/weights tests/export tests/report tests/tasks tests/optim tests/nn \
	tests/test_requirements.py tests/test_timm.py tests/training/test_resume.py tests/training/test_loop.py \
	tests/cli/test_train.py tests/runs/test_train.py tests/runs/test_eval_predict.py tests/runs/test_detection.py \
	tests/runs/test_dense.py

# The source is not installed again: its compiled kernels are those of the first environment. Old packages do what newer
# ones beside them call deprecated.
test-floors: $(INSTALLED) $(FLOORS)/.installed
	@# left out: torch 2.11 does not build timm's regnety_002 without memory; onnxruntime 1.20 to 1.23 have no
	@# convolution of signed weights of 8 bits
	PYTHONPATH=$(CURDIR)/src OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -n 2 --dist worksteal -W ignore::DeprecationWarning \
		-k "not regnety_002 and not -QInt8" \
		$(FLOOR_TESTS)

$(FLOORS)/.installed: pyproject.toml constraints.txt tests/oldest.py
	python3 -m venv $(FLOORS)
	python3 tests/oldest.py > $(FLOORS)/oldest.txt
	$(FLOORS)/bin/python -m pip install --quiet -r $(FLOORS)/oldest.txt
	touch $@

check: $(INSTALLED) lint
	$(PYTEST) -m "not slow"

test-machines: $(MACHINES:%=test-on-%)

test-on-avx2: export ATEN_CPU_CAPABILITY = avx2
test-on-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
test-on-avx2: export MKL_ENABLE_INSTRUCTIONS = AVX2
test-on-no-avx: export ATEN_CPU_CAPABILITY = default
test-on-no-avx: export ONEDNN_MAX_CPU_ISA = SSE41
test-on-no-avx: export MKL_ENABLE_INSTRUCTIONS = SSE4_2
test-on-no-kernels: export NORMFREE_KERNELS = 0
test-on-2-threads: export NORMFREE_TEST_THREADS = 2
test-on-8-threads: export NORMFREE_TEST_THREADS = 8
$(MACHINES:%=test-on-%): test-on-%: $(INSTALLED)
	@echo "as on another machine: $*"
	$(PYTEST) $(NUMERIC)

timm-suite: $(INSTALLED)
	$(PYTHON) tests/timm_suite.py

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/.docs-installed: $(INSTALLED)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright -p .

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard src/normfree/kernels/*.cpp src/normfree/kernels/*.h)
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(FLOORS) .pytest_cache .ruff_cache build site
