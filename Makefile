# Each target sets up all it needs on a machine that has Python 3.11-3.13, pip and make. `make env PYTHON=python3.12` picks another Python.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: env demo test check test-fast test-demo test-pins test-slurm test-skypilot lock bench gpu aot mutate soak fuzz prove schema

env:  ## The environment in .venv, from requirements.lock
	@PYTHON=$(PYTHON) scripts/env.sh .venv requirements.lock

demo: env  ## Forgetting and recovery on real text; QUICK=1 for the two-stage run alone
	@$(BIN)/rewarm demo . $(if $(QUICK),,--full)

test: check  ## Everything that CI runs

check: env  ## Style, types, import direction, then all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

test-fast: env  ## Tests that take seconds
	$(BIN)/pytest -m 'not slow and not gpu and not demo'

test-demo: env  ## What the whole demo must show: signs and half of the differences measured
	$(BIN)/pytest -m demo

test-pins:  ## The suite on the versions that Composer and Streaming officially pin
	@PYTHON=$(PYTHON) scripts/env.sh .venv-pins requirements-pins.lock
	.venv-pins/bin/pytest -n 2 --dist loadfile

test-slurm: env  ## Our recipe on a real Slurm that the tests start: preemption, a lost node, the time limit; as root, Debian's slurm-wlm (10 minutes)
	command -v slurmctld munged >/dev/null || apt-get install -y --no-install-recommends slurm-wlm slurm-client munge
	$(BIN)/pytest -m slurm tests/launch/test_slurm.py

test-skypilot: env  ## Our managed job, read by SkyPilot's own loader, which has an environment of its own (0.6 GB)
	[ -x .venv-skypilot/bin/sky ] || { $(PYTHON) -m venv .venv-skypilot && .venv-skypilot/bin/pip install -q skypilot==0.14.1; }
	$(BIN)/pytest tests/launch/test_skypilot.py

schema: env  ## Writes the JSON Schema of run files, and the page of all keys, anew
	$(BIN)/rewarm schema > yamls/run.schema.json
	$(BIN)/python scripts/run_file_page.py > docs/run-file.md

lock:  ## Re-locks both environments (needs uv)
	scripts/lock.sh

bench: env  ## Trainer overhead, conversion, checkpoints, start-up (minutes; a quiet machine)
	@failed=0; for f in scripts/bench/[!_]*.py; do echo "== $$f"; $(BIN)/python $$f || failed=1; done; exit $$failed

gpu:  ## Everything that needs one GPU, in under 9 minutes; DRY=1: the same on a CPU at toy sizes; ONLY=step,parity
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/gpu/run.py $(if $(DRY),--dry) $(if $(ONLY),--only $(ONLY))

soak: env  ## Random faults on two ranks with S3 storage for MINUTES from SEED, then a comparison with the unbroken run
	$(BIN)/python -W ignore tests/faults/soak.py --minutes $(or $(MINUTES),5) --seed $(or $(SEED),1)

fuzz: env  ## COUNT hostile inputs of each kind from SEED: run files, datasets, checkpoints, run folders, Hugging Face folders
	REWARM_FUZZ_COUNT=$(or $(COUNT),2000) REWARM_FUZZ_SEED=$(or $(SEED),1) $(BIN)/pytest -n 2 --durations 10 tests/fuzz

prove: env  ## Runs the long proofs of the kernels and writes down what they have seen; CI repeats one when its files have changed
	$(BIN)/python -m tests.proofs

aot: env  ## Compiles every kernel for sm_80, sm_90 and sm_100 and compares with kernels/results/aot.csv
	$(BIN)/python kernels/aot.py --check

mutate: env  ## Breaks each term of each gradient; a test must fail for it
	$(BIN)/python kernels/mutate.py
