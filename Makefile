# `make demo` and `make test` each set up everything they need in .venv.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The build requirements are pinned too, which -c alone does not reach.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# Two processes: on two cores the tests take two thirds of the time that one takes.
PYTEST_ARGS ?= -n 2

.PHONY: demo test test-all docs figures notebooks lint clean

demo: $(VENV)/.installed
	$(BIN)/biotorch run configs/quickstart.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The drawings of the rules, and the figure and the table of the demo from the runs in results/quickstart.
figures: $(VENV)/.installed
	$(BIN)/python docs/figures.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site in site/; a warning, a broken link or a missing anchor is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

notebooks: $(VENV)/.installed-dev
	$(BIN)/python examples/execute.py

clean:
	rm -rf $(VENV) runs site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "biotorch needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	if command -v uv >/dev/null; then uv venv --python "$$(command -v $(PYTHON))" $(VENV); else $(PYTHON) -m venv $(VENV); fi

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -c constraints.txt -b constraints.txt -e .; \
	else $(BIN)/python -m pip install --quiet -c constraints.txt -e .; fi
	touch $@

# torchattacks, an oracle of the tests, pins versions of its dependencies that do not go with ours: without them.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -c constraints.txt -b constraints.txt -e '.[dev]' && \
	  uv pip install --python $(BIN)/python --no-deps -c constraints.txt torchattacks; \
	else $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' && \
	  $(BIN)/python -m pip install --quiet --no-deps -c constraints.txt torchattacks; fi
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	@{ if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -c constraints.txt -b constraints.txt -e '.[docs]'; \
	else $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'; fi; } || { \
	echo "make docs needs mkdocs-material and mkdocstrings, which pip could not install (is there a network?)." \
	  "Once they are in $(VENV), it works offline."; exit 1; }
	touch $@
