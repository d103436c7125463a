# Two commands: `make demo` and `make test`. Both set the environment up when it is not there yet.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test coverage install clean-venv

demo: $(STAMP)
	$(BIN)/pseudolabel demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

# The lines of the three packages that the suite reaches, commands run in processes of their own included.
coverage: $(STAMP)
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90

install: $(STAMP)

# The stamp is written last, so an interrupted install is done again; a changed pyproject.toml installs again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off -e '.[dev]'
	@$(BIN)/python -m pip install --quiet -e '.[crf]' 2> $(VENV)/crf.log || \
	  echo "NOTE: pydensecrf was not built (no C++ compiler? see $(VENV)/crf.log): the dense CRF runs in torch, the masks are the same."
	touch $(STAMP)

clean-venv:
	rm -rf $(VENV)
