# Two commands: `make demo` and `make test`. Both create .venv and install into it first. `make test-tf215` runs the same
# tests with TensorFlow 2.15, TensorFlow Addons and the oldest packages that setup.cfg accepts, in .venv-tf215.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_TF215 := .venv-tf215
BIN_TF215 := $(VENV_TF215)/bin
# The first that runs and is 3.10 or 3.11; TensorFlow Addons has no wheels for a newer Python.
PYTHON_TF215 ?= $(shell for name in python3.11 python3.10 $(PYTHON) python; do $$name -c \
    'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null && echo $$name && break; done)
# Files in the order of tests/conftest.py, which starts the longest ones first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --durations=20
TESTS ?=
DEMO := work/demo
DEMO_IMAGES ?= 1600
DEMO_SET ?=
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-tf215 test-lowest lint fuzz mutants audit docs clean

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/refinedet draw-shapes --output_dir=$(DEMO)/shapes --train=$(DEMO_IMAGES) --val=100
	$(BIN)/refinedet train --config=refinedet128_mobilenet_shapes --data_dir=$(DEMO)/shapes \
	    --work_dir=$(DEMO)/run $(addprefix --set ,$(DEMO_SET))
	$(BIN)/refinedet export-savedmodel --model=$(DEMO)/run/model.keras --output_dir=$(DEMO)/saved_model \
	    --noverify
	$(BIN)/refinedet evaluate --model=$(DEMO)/saved_model --data_dir=$(DEMO)/shapes --splits=val \
	    --json=$(DEMO)/ap.json
	mkdir -p $(DEMO)/photos
	for name in $$(head -12 $(DEMO)/shapes/ImageSets/Main/val.txt); do \
	    cp $(DEMO)/shapes/JPEGImages/$$name.jpg $(DEMO)/photos/; done
	$(BIN)/refinedet detect --model=$(DEMO)/saved_model --input=$(DEMO)/photos \
	    --output_dir=$(DEMO)/detections --gallery=$(DEMO)/gallery.png
	@echo "Look at $(DEMO)/gallery.png and $(DEMO)/run/curves.png; the SavedModel is $(DEMO)/saved_model."

test: lint
	$(BIN)/python -m pytest $(WORKERS) $(TESTS)

test-tf215: $(VENV_TF215)/installed-test
	$(BIN_TF215)/python -m pytest $(WORKERS) $(TESTS)

# TensorFlow 2.15 is the lower bound of TensorFlow, and its environment has the lower bounds of all the others.
test-lowest: test-tf215

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.robustness.fuzzing --cases=20000

mutants: $(VENV)/installed-mutants
	$(BIN)/python benchmarks/mutants.py --count=100

audit: $(VENV)/installed-test
	$(PYTHON) -m venv work/audit
	work/audit/bin/python -m pip install --quiet pip-audit
	work/audit/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open work/site/index.html."

$(VENV)/installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable .[test,keras-hub]
	touch $@

$(VENV_TF215)/installed-test: setup.cfg setup.py pyproject.toml
	@test -n "$(PYTHON_TF215)" || { echo "make test-tf215: TensorFlow 2.15 and TensorFlow Addons need Python 3.10 or 3.11, \
	and none was found. Install one, or name it: make test-tf215 PYTHON_TF215=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON_TF215) -m venv $(VENV_TF215)
	$(BIN_TF215)/python -m pip install --quiet --upgrade pip
	sed -nE '/^(install_requires|test) =/,/^$$/s/^    ([a-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' setup.cfg > $(VENV_TF215)/bounds.txt
	$(BIN_TF215)/python -m pip install --quiet --editable .[addons,test] --constraint $(VENV_TF215)/bounds.txt
	touch $@

$(VENV)/installed-mutants: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --editable .[mutants]
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable .[docs]
	touch $@

clean:
	rm -rf $(VENV) $(VENV_TF215) work
