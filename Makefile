# Every target does its own set-up, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
# Chainer is built from source, which today's setuptools can not do: see README.md, "Installing".
PIP = PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt $(VENV)/bin/python -m pip
REQUIREMENTS = setup.py pyproject.toml build-constraints.txt $(wildcard lib/_*.c lib/_*.h)

# The scripts prefer the mpirun beside Python over the site's: the wheel is for machines that have none.
MPI = $(if $(shell command -v mpirun),,[mpi])

.PHONY: train test lint bench soak clean

train: $(VENV)/.train
	PYTHON=$(VENV)/bin/python jobs/sample_cpu.sh

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.test
	$(VENV)/bin/python -m ruff check .

bench: $(VENV)/.bench
	PYTHON=$(VENV)/bin/python jobs/bench/run.sh

soak: $(VENV)/.test
	$(VENV)/bin/python -m jobs.faults.soak

clean:
	rm -rf $(VENV) build *.egg-info lib/_*.so

$(VENV)/.train: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable '.$(MPI)'
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(PIP) install --quiet --editable '.[test]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install --quiet --editable '.[test,bench]'
	touch $@
