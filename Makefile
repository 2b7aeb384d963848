# make demo: train a network on real images; make test: everything CI runs; make check: lint and the fast tests;
# make timm-suite: timm's tests of models, with ours.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test check timm-suite lint format clean

demo: $(INSTALLED)
	$(VENV)/bin/normfree train

test: $(INSTALLED) lint
	$(PYTHON) -m pytest -n 2 --dist loadfile

check: $(INSTALLED) lint
	$(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow"

timm-suite: $(INSTALLED)
	$(PYTHON) tests/timm_suite.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard src/normfree/kernels/*.cpp src/normfree/kernels/*.h)
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build
