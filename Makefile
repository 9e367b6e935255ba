# Every target does its own set-up, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
# Chainer is built from source, which today's setuptools can not do: see README.md, "Installing".
PIP = PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt $(VENV)/bin/python -m pip
REQUIREMENTS = setup.py pyproject.toml build-constraints.txt $(wildcard lib/compiled/*.[ch])

# The scripts prefer the mpirun beside Python over the site's: the wheel is for machines that have none.
MPI = $(if $(shell command -v mpirun),,[mpi])

.PHONY: train test test-gpu test-hosts lint bench soak mutants clean

train: $(VENV)/.train
	PYTHON=$(VENV)/bin/python jobs/sample_cpu.sh

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

# In an environment of its own: where CuPy is, the other tests see it too.
test-gpu:
	$(MAKE) VENV=$(VENV)-gpu $(VENV)-gpu/.test-gpu
	$(VENV)-gpu/bin/python -m pytest tests/cuda_on_cpu

# Several hosts on this machine, as root; MPICH has an environment of its own, since mpi4py takes the MPI beside it.
test-hosts: $(VENV)/.test $(VENV)-mpich/.test
	$(VENV)/bin/python -m pytest tests/hosts

lint: $(VENV)/.test
	$(VENV)/bin/python -m ruff check .

bench: $(VENV)/.bench
	PYTHON=$(VENV)/bin/python jobs/bench/run.sh

soak: $(VENV)/.test
	$(VENV)/bin/python -m jobs.faults.soak

mutants: $(VENV)/.test
	$(VENV)/bin/python -m tests.mutants

clean:
	rm -rf $(VENV) $(VENV)-gpu $(VENV)-mpich build *.egg-info lib/compiled/*.so

$(VENV)/.train: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable '.$(MPI)'
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(PIP) install --quiet --editable '.[test]'
	touch $@

$(VENV)-mpich/.test: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)-mpich
	$(subst $(VENV)/,$(VENV)-mpich/,$(PIP)) install --quiet --editable . 'mpich>=5,<6'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install --quiet --editable '.[test,bench]'
	touch $@

# Two CuPys: the second where only the tests that ask for it look.
$(VENV)/.test-gpu: $(VENV)/.test
	$(PIP) install --quiet --editable '.[test,test-gpu]'
	$(PIP) install --quiet --upgrade --target $(VENV)/cupy14 --no-deps 'cupy-cuda13x>=14,<15' 'cuda-pathfinder>=1.3.4,<2'
	touch $@
