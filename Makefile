# The two commands: `make demo` and `make test`. Both install into .venv on first use.
PYTHON ?= python3.11
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test lint bench install
install: .venv/installed

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
