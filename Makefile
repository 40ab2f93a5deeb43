# make demo   sets up .venv, trains FFF and CLIP on the embedded drawings (6 minutes of training), shows what came out
# make test   sets up .venv, checks style and runs the tests (under 10 minutes on 2 cores)
.PHONY: demo test test-all lint setup clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: setup lint
	$(BIN)/python tests/common/fetch_sdist.py
	$(BIN)/python tests/common/fetch_clip_bpe.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: setup lint
	$(BIN)/python tests/common/fetch_sdist.py
	$(BIN)/python tests/common/fetch_clip_bpe.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

clean:
	rm -rf $(VENV) .cache outputs build *.egg-info
