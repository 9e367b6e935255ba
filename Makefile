# Every target does its own set-up, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
# Chainer is built from source, which today's setuptools can not do: see README.md, "Installing".
PIP = PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt $(VENV)/bin/python -m pip
REQUIREMENTS = setup.py build-constraints.txt $(wildcard lib/compiled/*.[ch])

.PHONY: train test test-gpu lint bench soak mutants clean

train: $(VENV)/.train
	PYTHON=$(VENV)/bin/python jobs/sample_cpu.sh

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

# In an environment of its own: where CuPy is, the other tests see it too.
test-gpu:
	$(MAKE) VENV=$(VENV)-gpu $(VENV)-gpu/.test-gpu
	$(VENV)-gpu/bin/python -m pytest tests/cuda_on_cpu

lint: $(VENV)/.test
	$(VENV)/bin/python -m ruff check .

bench: $(VENV)/.bench
	PYTHON=$(VENV)/bin/python jobs/bench/run.sh

soak: $(VENV)/.test
	$(VENV)/bin/python -m jobs.faults.soak

mutants: $(VENV)/.test
	$(VENV)/bin/python -m tests.mutants

clean:
	rm -rf $(VENV) $(VENV)-gpu build *.egg-info lib/compiled/*.so

$(VENV)/.train: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable '.[mpi]'
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(PIP) install --quiet --editable '.[mpi,test]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install --quiet --editable '.[mpi,test,bench]'
	touch $@

# Two CuPys: the second where only the tests that ask for it look.
$(VENV)/.test-gpu: $(VENV)/.test
	$(PIP) install --quiet --editable '.[mpi,test,test-gpu]'
	$(PIP) install --quiet --upgrade --target $(VENV)/cupy14 --no-deps 'cupy-cuda13x>=14,<15' 'cuda-pathfinder>=1.3.4,<2'
	touch $@
