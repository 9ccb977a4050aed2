# Sets up `.venv` from the lock, and runs tenet in it. Needs Python 3.11, venv and pip.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test lint audit coverage setup
setup: $(STAMP)

# PyTorch's CPU wheel carries a local version that PyPI has not: where pip does not find it, its own index is asked.
# Not asked first, since an index that cannot be reached costs pip long retries.
$(STAMP): requirements/cpu.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-deps -r requirements/cpu.lock \
	  || $(VENV)/bin/pip install -q --no-deps -r requirements/cpu.lock --extra-index-url https://download.pytorch.org/whl/cpu
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/tenet demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

# What bandit says of our code, and pip-audit of the pinned packages (skipped where its data cannot be reached).
audit: $(STAMP)
	$(VENV)/bin/bandit -q -r -c pyproject.toml -ii tenet constitution generators judges trainers service nano
	$(VENV)/bin/python .ci/audit.py

# Branches that the quick tests take: no vLLM, no training, no browser. About three minutes.
QUICK := $(addprefix tests/test_,agree agree_command agree_input constitution edits engine_openai extensions hostile_input \
	importers judging ledger lint pairs_file pairwise panel pipeline pointwise preview prompts properties \
	properties_ledger properties_settings properties_votes rendering runs settings stats)
coverage: $(STAMP)
	$(VENV)/bin/coverage run -m pytest -q $(QUICK:=.py)
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report
