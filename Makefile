# Two commands for a stranger: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = runs/demo

.PHONY: demo test clean

# The environment is made anew when what it is made of changes.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Festina needs Python 3.11 or newer; say make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/festina search scenes --out $(RUN) --population 12 --generations 6 --images 24 --held-out-images 40
	$(BIN)/festina front $(RUN) --fewer-macs 2 --save $(RUN)/best.json
	$(BIN)/festina generate scenes --plan $(RUN)/best.json --compare --out $(RUN)/pictures \
	  'a large red circle left of a small blue square on a white background' \
	  'a small yellow star above a large green triangle on a black background' \
	  'a large purple ring on a pink background' \
	  'a small orange cross right of a large yellow circle on a grey background'
	@echo 'Look at $(RUN)/index.html and $(RUN)/pictures/side-by-side.png'

test: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) runs
