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

# A finished step is not repeated, an interrupted pretraining is resumed.
demo: $(DEMO)/caco3/results.md
	@cat $<
	@echo "Cards, figures, models: $(DEMO)/pretraining, $(DEMO)/caco3; spectra: $(DEMO)/corpus"

$(DEMO)/corpus/corpus.json: .venv/installed
	$(BIN)/python -m dataset_builder simulate --num-spectra 12000 --num-cores 60 --output $(DEMO)/corpus

$(DEMO)/pretraining/model/README.md: $(DEMO)/corpus/corpus.json
	$(BIN)/accelerate launch --quiet --config_file scripts/configs/cpu.yaml scripts/run_msm.py \
		--dataset $(DEMO)/corpus --model_size tiny --config_file scripts/configs/tiny_10kv.json \
		--epochs 10 --batch_size 64 --learning_rate 1e-3 --output_dir $(DEMO)/pretraining --resume

$(DEMO)/caco3/results.md: $(DEMO)/pretraining/model/README.md
	rm -rf $(DEMO)/caco3
	$(BIN)/python scripts/run_regression.py --model_name_or_path $(DEMO)/pretraining/model \
		--dataset $(DEMO)/corpus --validation_split none --targets CaCO3 --num_labels 100 \
		--output_dir $(DEMO)/caco3

# Independent programs that some tests compare with; without them those tests are skipped.
.venv/references: .venv/installed
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
