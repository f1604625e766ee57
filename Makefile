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

# A finished step is not repeated.
demo: $(DEMO)/caco3/results.md $(DEMO)/caco3-lora/results.md
	@cat $^
	@echo "Models, cards, figures: $(DEMO)/caco3, $(DEMO)/caco3-lora; spectra: $(DEMO)/corpus"

$(DEMO)/corpus/corpus.json: .venv/installed
	$(BIN)/python -m dataset_builder simulate --num-spectra 12000 --num-cores 60 --output $(DEMO)/corpus

$(DEMO)/caco3/results.md: $(DEMO)/corpus/corpus.json
	rm -rf $(DEMO)/caco3
	$(BIN)/python scripts/run_regression.py $(DEMO)/corpus --target CaCO3 --num_labels 100 --output_dir $(DEMO)/caco3

$(DEMO)/caco3-lora/results.md: $(DEMO)/corpus/corpus.json
	rm -rf $(DEMO)/caco3-lora
	$(BIN)/python scripts/run_regression.py $(DEMO)/corpus --target CaCO3 --num_labels 100 --method lora \
		--validation_split none --output_dir $(DEMO)/caco3-lora

# ONNX Runtime, Ray, and independent programs that some tests compare with; without them those tests are skipped.
.venv/references: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[onnx,ray]" || \
		echo "ONNX Runtime or Ray could not be installed: their tests are skipped"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[references]" || \
		echo "fisx needs a C++ compiler: tests that compare with it are skipped"
	touch $@

test: .venv/references
	$(BIN)/python -m pytest --numprocesses 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed
	$(BIN)/python benchmarks/real_spectra.py
	$(BIN)/python benchmarks/few_labels.py
	$(BIN)/python benchmarks/familiarity.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/inference.py
