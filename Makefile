# Everything a person types. Each target does its own set-up: a .venv, hash-locked dependencies, the package itself.
PYTHON ?= python3.11
DEMO_PORT ?= 8815
MARKS ?= not slow
JOBS ?= 0
SUMMARY ?= fE
MINUTES ?= 20
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
READY := .venv/.ready
COMPILE := uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11
COLLECTOR := collector s3 postgres tracing

.PHONY: help setup bench-privacy bench-peers bench-agent bench-collector soak fuzz tools demo notebook test check format lint types imports config-docs proto proto-check proto-baseline lock clean

help: ## what there is to type
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## a .venv with everything that requirements.lock names

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

bench-privacy: setup ## cost and accuracy against the plain group-by and bounded SQL; a line a bar
	$(BIN)/python -m benchmarks.privacy

bench-peers: setup ## the same questions to other systems, each in its own environment; takes hours
	$(BIN)/python -m benchmarks.privacy.environments
	$(BIN)/python -m benchmarks.privacy --peers --missing
	$(BIN)/python -m benchmarks.privacy.page

bench-agent: setup ## what an agent costs a box: start, rest, intake, closing; a line a bar
	$(BIN)/python -m benchmarks.agent

soak: setup ## an agent under 200,000 events a second for MINUTES (20): memory flat, nothing lost
	$(BIN)/python -m benchmarks.agent.soak --minutes $(MINUTES)

fuzz: setup ## coverage-guided fuzzing of decode and the readers, five minutes a target
	for target in typed lines cells frames bodies; do \
	  $(BIN)/python -m tests.fuzz.harness $$target -max_total_time=300 -max_len=256 || exit 1; done

tools: ## what tests need besides the .venv, under .tools/: Mosquitto and PostgreSQL from Debian (by apt-get, without root), a distributed engine
	sh tests/conformance/mosquitto.sh
	sh tests/cloud_collector/postgres.sh
	$(PYTHON) examples/engine/environment.py

bench-collector: setup ## the collector under load, over TLS, beside an ack-only server; a line a bar; half an hour
	$(BIN)/python -m benchmarks.collector

demo: setup ## the main job on real flights: three agents, a collector, a table, a chart
	DEMO_PORT=$(DEMO_PORT) $(BIN)/python -m examples.flights.demo

notebook: setup ## Jupyter on notebooks/quickstart.ipynb, over the store that the demo left behind
	$(BIN)/python -m examples.flights.notebook

test: setup ## the fast tests
	$(BIN)/python -m pytest -m "$(MARKS)" -n $(JOBS) -r $(SUMMARY)

check: setup lint types imports proto-check ## what a change must pass: format, lint, types, rooms, proto, all tests; says at its end what was skipped
	$(MAKE) test MARKS="slow or not slow" JOBS=auto SUMMARY=fEs

format: setup ## write the code the way `check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --no-cache

config-docs: setup ## write docs/configuration.md anew, out of the config's tables
	$(BIN)/python -m docs.configuration

proto: setup ## write the stubs of proto/ anew
	PATH="$(CURDIR)/$(BIN):$$PATH" sh proto/generate.sh

proto-check: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" sh proto/check.sh

lock: setup ## write requirements.lock, and what each role installs of it, anew (needs uv)
	$(COMPILE) pyproject.toml --all-extras --no-emit-package pandas --output-file requirements.lock
	$(COMPILE) pyproject.toml --constraint requirements.lock --output-file requirements-agent.lock
	$(COMPILE) pyproject.toml --constraint requirements.lock $(COLLECTOR:%=--extra %) --output-file requirements-collector.lock
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
	  | $(COMPILE) - --constraint requirements.lock --output-file requirements-build.lock

proto-baseline: setup ## after a release of the wire: what later changes must not break
	cd proto && ../$(BIN)/buf build --exclude-source-info -o baseline.binpb

clean: ## away with what the targets made
	rm -rf .venv .demo .tools .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
