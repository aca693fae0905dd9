# Two verbs do all the set-up on a fresh machine with Python 3.11+ (with venv), git and make:
#   make demo    the main job, end to end, on real pictures
#   make test    the tests, but those marked slow: `make test-all`
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check drawings-64 from-scratch bench-krablet bench-model bench-curation bench-training \
	experiment-ablations experiment-ground experiment-guidance experiment-hacking experiment-homogenisation experiment-lora experiment-merging \
	experiment-progressive experiment-prompt_pool experiment-rubric experiment-stpo experiment-tdm clean

demo: $(VENV)/installed
	$(BIN)/pleinair run demo

test: $(VENV)/installed
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(VENV)/installed
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

# Everything CI checks beside the tests: style, types, import ranks, spelling.
check: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs benchmarks README.md CHANGELOG.md

# About two hours on 2 cores, resumable: the model that ships with the package.
drawings-64: $(VENV)/installed
	$(BIN)/pleinair run drawings-64

# The demo with its own autoencoder and judge instead of the shipped ones (about an hour more).
from-scratch: $(VENV)/installed
	$(BIN)/pleinair run demo --from-scratch

bench-krablet bench-model bench-curation bench-training: bench-%: $(VENV)/installed
	$(BIN)/python -m benchmarks.$*

# Experiments, each with a page in docs/results; all may be stopped and go on when started again.
experiment-ground experiment-guidance experiment-hacking experiment-homogenisation experiment-lora experiment-merging \
experiment-progressive experiment-prompt_pool experiment-rubric experiment-stpo experiment-tdm: experiment-%: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.experiments $*

experiment-ablations: $(VENV)/installed
	$(BIN)/pleinair ingest drawings
	$(BIN)/pleinair curate drawings
	$(BIN)/pleinair pack ablations
	$(BIN)/pleinair ablate ablations --short 200 --long 600 --out docs/results/ablations

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
