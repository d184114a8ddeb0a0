# One command for each thing a developer does; `make help` lists them.
#
# PYTHON=...   interpreter to make .venv from (3.11 or newer)
# VENV=...     where that is, .venv; a package for another Python is made by
#              make deb PYTHON=python3.13 VENV=build/venv-3.13
# PREFIX=...   where install puts things, /usr/local
# DESTDIR=...  in front of that, for packages
# ARGS=...     passed on to pytest, perf, fuzz, demo
# JOBS=...     test files that run side by side: more than cores, because many of them wait
# Build switches (SHADOWMESH_*) are listed in setup.py.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=
VENV ?= .venv
export PYTHON PREFIX DESTDIR VENV
# Without cached bytecode every daemon and every command compiles the whole package when it starts.
export PYTHONDONTWRITEBYTECODE :=
ARGS ?=
JOBS ?= 3
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install --use-pep517 --constraint constraints.txt
# What several threads do at once, but for tests that count memory or threads (the sanitizer has its own),
# and for the end of an interpreter, which closes descriptors under threads that read them.
RACES := $(addprefix tests/fastpath/test_,capture_ring.py epochs.py lifecycle.py path_flips.py queues.py ring.py slow_link.py switch.py)
RACES += tests/link/test_carried.py
RACES += -k "not allocate and not memory and not thread and not leak and not interpreter"
# Several people or jobs may share a checkout; the compiled module is written in place.
LOCK := mkdir -p build && flock build/.lock

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: $(VENV)/.runtime ## make .venv, choose or build libsodium, compile the data plane in place
	@$(LOCK) $(PY) setup.py --quiet build_ext --inplace

.PHONY: dev
dev: build $(VENV)/.dev ## build, and install what tests and lint need

.PHONY: demo
demo: packages-demo build ## three hosts, a daemon on each, one Ethernet on this machine; leaves nothing behind
	@$(PY) -m shadowmesh.netlab.demo $(ARGS)

# Coverage that follows greenlets makes each line four times as slow: only where there are some.
PYTEST := -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
.PHONY: test
test: packages-test dev ## the whole test suite, with coverage of the Python code
	@$(PY) -m coverage erase
ifeq ($(ARGS),)
	@$(PY) -m coverage run --concurrency=thread $(PYTEST) -m "not greenlets"
	@$(PY) -m coverage run $(PYTEST) -m greenlets
else
	@$(PY) -m coverage run $(PYTEST) $(ARGS)
endif
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report $(if $(ARGS),--fail-under=0)

.PHONY: lint
lint: types ## style, formatting, types, compiler warnings
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
ifeq ($(SHADOWMESH_WERROR),) # else the build has done this
	@$(LOCK) env SHADOWMESH_WERROR=1 $(PY) setup.py --quiet build_ext \
	  --build-lib build/lint --build-temp build/lint-objects
endif

.PHONY: types
types: dev ## mypy, strict, on the parts that must not go wrong
	@$(VENV)/bin/mypy

# setarch: the sanitizer wants memory where it expects it, whatever the kernel's randomisation.
.PHONY: sanitize
sanitize: dev ## the data plane's tests under the sanitizers: memory, undefined behaviour, data races
	@$(LOCK) env SHADOWMESH_SANITIZE=memory $(PY) setup.py --quiet build \
	  --build-lib build/sanitize-memory --build-temp build/sanitize-memory-objects
	@env PYTHONPATH=build/sanitize-memory LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  $(VENV)/bin/pytest -s -p shadowmesh._fastpath --numprocesses $(JOBS) --dist loadfile $(or $(ARGS),tests/fastpath tests/link/test_carried.py tests/link/test_stream.py)
	@$(LOCK) env SHADOWMESH_SANITIZE=thread $(PY) setup.py --quiet build \
	  --build-lib build/sanitize-thread --build-temp build/sanitize-thread-objects
	@env PYTHONPATH=build/sanitize-thread LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
	  TSAN_OPTIONS=halt_on_error=1:exitcode=66 \
	  setarch -R $(VENV)/bin/pytest -s -p shadowmesh._fastpath --numprocesses $(JOBS) --dist loadfile $(RACES)

.PHONY: coverage
coverage: dev ## which lines of the data plane in C its tests reach
	@$(LOCK) env SHADOWMESH_COVERAGE=1 $(PY) setup.py --quiet build \
	  --build-lib build/coverage --build-temp build/coverage-objects
	@find build/coverage-objects -name '*.gcda' -delete
	@env PYTHONPATH=build/coverage \
	  $(VENV)/bin/pytest -p shadowmesh._fastpath --numprocesses $(JOBS) --dist loadfile $(or $(ARGS),tests/fastpath)
	@$(PY) scripts/c_coverage.py build/coverage-objects

.PHONY: perf
perf: packages-test build $(VENV)/.perf ## measure against the targets (root, quiet machine)
	@$(PY) -m perf $(ARGS)

.PHONY: faults
faults: packages-test dev ## the fault catalogue on real daemons, 40 minutes, a table (root); ARGS="--only NAME", --long
	@$(PY) -m faults $(ARGS)

.PHONY: fuzz
fuzz: dev $(VENV)/.fuzz ## feed the parsers random bytes
	@$(PY) -m fuzz $(ARGS)

.PHONY: wheel
wheel: build ## one wheel in dist/, which carries its own libsodium
	@$(LOCK) packaging/wheel.sh

.PHONY: install
install: build ## install the programs and the service (PREFIX=/usr/local, DESTDIR=)
	@set -- $$($(LOCK) packaging/wheel.sh) && packaging/install.sh install "$$1"

.PHONY: uninstall
uninstall: ## remove what install has installed; keys and configuration stay
	@packaging/install.sh uninstall

.PHONY: deb
deb: build ## a Debian package in dist/, for the Python of Debian 12, 13 or Ubuntu 24.04 that PYTHON= is
	@set -- $$($(LOCK) packaging/wheel.sh) && packaging/deb.sh "$$1"

.PHONY: test-deb
test-deb: build ## install, upgrade and purge that package in the Debian of its Python, with its own systemd (root)
	@set -- $$($(LOCK) packaging/wheel.sh) && packaging/test-deb.sh "$$(packaging/deb.sh "$$1")"

.PHONY: clean
clean: ## remove everything that was built, except .venv
	rm -rf build dist *.egg-info shadowmesh/*.so shadowmesh/fast/*.so shadowmesh/fast/hooks/*.so .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

.PHONY: packages-build packages-demo packages-test
packages-build packages-demo packages-test: packages-%:
	@scripts/system-packages.sh build $(filter-out build,$*)

$(VENV)/bin/python: | packages-build
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# setuptools and Cython first: the package is built without isolation, by exactly these.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "fetching setuptools and Cython into $(VENV)"
	@$(PIP) setuptools Cython
	@$(LOCK) $(PY) setup.py --quiet build_ext --inplace
	@echo "fetching the Python packages that the programs need into $(VENV)"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev $(VENV)/.fuzz $(VENV)/.perf: $(VENV)/.%: $(VENV)/.runtime
	@echo "fetching the Python packages for '$*' into $(VENV)"
	@$(PIP) --no-build-isolation --editable '.[$*]'
	@touch $@
