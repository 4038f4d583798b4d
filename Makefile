# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Tests that need no Ray, on two processes.
QUICK := -n 2 --dist loadfile -m "not slow and not soak and not scale and not ray"
# Tests and the demo never reach for a model hub; a short temporary path keeps Ray's sockets under the system's limit.
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-slow test-without-kernels coverage soak scale recipes compare-kills lint format install clean

demo: install
	$(BIN)/bertray demo

test: lint
	$(BIN)/pytest $(QUICK) --durations=12
	$(BIN)/pytest -m "ray and not slow and not soak" --durations=12

# Where this CPU runs our kernels, the tests of the rooms that use them once more, as every other CPU runs them.
test-without-kernels: install
	@if $(BIN)/python -c 'import sys; from bertray.model.kernels import kernels; sys.exit(kernels() is None)'; then \
	  BERTRAY_KERNELS=off $(BIN)/pytest $(QUICK) \
	    tests/model tests/training tests/benchmark; \
	else echo "our kernels are not in use here: make test has run without them"; fi

test-slow: install
	$(BIN)/pytest -m "slow and not soak" --durations=12

# Lines of the package that no quick test runs; the tests on Ray run more of them. It is no gate.
coverage: install
	$(BIN)/pytest $(QUICK) --cov=bertray --cov-report=term-missing:skip-covered

soak: install
	$(BIN)/pytest -m soak -s

scale: install
	$(BIN)/pytest -m scale -s

compare-kills: install
	$(BIN)/python -m tests.kills.compare

# Every recipe on real data, and the tables of docs/recipes.md; DATA is the folder with imdb/, cola/, emotion/ ...
DATA ?= ../shared/data
recipes: install
	$(BIN)/python -m tests.recipes.run $(DATA)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bertray needs Python 3.11 or later, found %s; run `make PYTHON=python3.11`" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo-run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
