# Two commands: `make quickstart` and `make test`. They need Python >= 3.11 and make, and install the rest into VENV.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is installed follows from pyproject.toml and from where this checkout lies.
KEY := $(shell (cat pyproject.toml; pwd) | cksum | cut -d' ' -f1)

.PHONY: quickstart test test-slow lint chromium benchmark clean

quickstart: $(VENV)/.hfseg-$(KEY)
	$(BIN)/hfseg quickstart $(ARGS)
	@echo "hfseg is $(BIN)/hfseg; '. $(BIN)/activate' puts it on the path."

test: $(VENV)/.hfseg-test-$(KEY) lint chromium
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/.hfseg-test-$(KEY)
	$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

lint: $(VENV)/.hfseg-test-$(KEY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# The browser that the demo is tested in, where apt can install it; elsewhere these tests are skipped, and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] \
		|| { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
			chromium fonts-dejavu-core fonts-liberation; } >/dev/null 2>&1 \
		|| echo "no Chromium: the demo is not tested in a browser"

benchmark: $(VENV)/.hfseg-test-$(KEY)
	$(BIN)/python scripts/benchmark.py $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "hfseg needs Python >= 3.11; this is `$(PYTHON) --version`. Set PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.hfseg-$(KEY): $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.hfseg-test-$(KEY): $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.hfseg-$(KEY)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
