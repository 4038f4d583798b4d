# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Tests that need no Ray, on two processes.
TWO := -n 2 --dist loadfile
QUICK := $(TWO) -m "not slow and not soak and not scale and not ray"
# Files with tests on Ray: to collect all the others takes half a minute.
ON_RAY = $(sort $(shell grep -rl --include='test_*.py' 'mark\.ray\b' tests))
# Tests and the demo never reach for a model hub; a short temporary path keeps Ray's sockets under the system's limit.
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# The installation compiles no module: the first import does, and has to keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-on-ray test-slow test-without-kernels coverage soak scale recipes compare-kills lint style types format install install-dev wheel docs clean

demo: install
	$(BIN)/bertray demo

# Types are checked beside the tests on Ray, which wait for processes most of their time.
test: style
	$(MAKE) -j 2 types test-on-ray
	$(BIN)/pytest $(QUICK) --durations=12

test-on-ray: install-dev
	$(BIN)/pytest -m "ray and not slow and not soak" $(ON_RAY) --durations=12

# Where this CPU runs our kernels, the tests of the rooms that use them once more, as every other CPU runs them.
test-without-kernels: install-dev
	@if $(BIN)/python -c 'import sys, torch; from bertray.model.kernels import kernels as k; sys.exit(not (k(torch.bfloat16) or k(torch.float32)))'; then \
	  BERTRAY_KERNELS=off $(BIN)/pytest $(QUICK) \
	    tests/model tests/training tests/benchmark; \
	else echo "our kernels are not in use here: make test has run without them"; fi

test-slow: install-dev
	BERTRAY_THOROUGH=1 $(BIN)/pytest $(TWO) -m "(slow or property) and not soak and not ray" --durations=12
	$(BIN)/pytest -m "slow and ray and not soak" $(ON_RAY) --durations=12

# Lines of the package that no quick test runs; the tests on Ray run more of them. It is no gate.
coverage: install-dev
	$(BIN)/pytest $(QUICK) --cov=bertray --cov-report=term-missing:skip-covered

soak: install-dev
	$(BIN)/pytest -m soak -s

scale: install-dev
	$(BIN)/pytest -m scale -s

compare-kills: install-dev
	$(BIN)/python -m tests.kills.compare

# Every recipe on real data, and the tables of docs/recipes.md; DATA is the folder with imdb/, cola/, emotion/ ...
DATA ?= ../shared/data
recipes: install-dev
	$(BIN)/python -m tests.recipes.run $(DATA)

lint: style types

style: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What a user needs; developers' targets add the other extras and the tools to the same environment.
install: .venv/.installed

install-dev: .venv/.installed-dev

SOURCES := pyproject.toml constraints.txt hatch_build.py $(wildcard bertray/model/kernels/*/*.cpp bertray/model/kernels/*/*.h)
# Modules are compiled when they are first imported: most of the packages' never are, and compiling all of them takes
# longer than the rest of the installation.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bertray needs Python 3.11 or later, found %s; run `make PYTHON=python3.11`" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	-$(PIP_INSTALL) --upgrade pip  # resolves faster than the one that came with Python; without it, that one does

.venv/.installed: $(SOURCES) | .venv/bin/python
	$(PIP_INSTALL) $$($(PYTHON) tools/cpu_build.py) -e '.[bundled,fast]'
	@touch $@

.venv/.installed-dev: $(SOURCES) | .venv/bin/python
	$(PIP_INSTALL) $$($(PYTHON) tools/cpu_build.py) -e '.[dev]'
	@touch .venv/.installed $@

wheel: .venv/bin/python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf .venv demo-run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
