# make demo   sets up .venv, trains FFF and CLIP on the embedded drawings (6 minutes of training), shows what came out
# make space  sets up .venv-space, opens a page in which the models can be tried: http://127.0.0.1:7860
# make test   sets up .venv, checks style and runs the tests (under 10 minutes on 2 cores)
.PHONY: demo space test test-all test-space lint setup clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPACE := .venv-space

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# its own environment: gradio wants an older Pillow, which resizes a little differently
$(SPACE)/.installed: pyproject.toml examples/space/requirements.txt
	test -x $(SPACE)/bin/python || $(PYTHON) -m venv $(SPACE)
	$(SPACE)/bin/python -m pip install --quiet -r examples/space/requirements.txt -e .
	touch $@

space: $(SPACE)/.installed
	$(SPACE)/bin/python examples/space/prepare.py
	$(SPACE)/bin/python examples/space/app.py

# the page in headless Chromium, which must be there: Debian's chromium-headless-shell, or `playwright install chromium`
test-space: $(SPACE)/.installed
	$(SPACE)/bin/python -m pip install --quiet pytest pytest-timeout playwright==1.65.2
	OMP_NUM_THREADS=1 $(SPACE)/bin/python -m pytest -q tests/space

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
	rm -rf $(VENV) $(SPACE) .cache outputs build *.egg-info
