# Two commands: `make demo` and `make test`. Both create .venv and install into it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := work/demo
DEMO_IMAGES ?= 1600
DEMO_SET ?=
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint docs clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open work/site/index.html."

$(VENV)/installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable .[test]
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable .[docs]
	touch $@

clean:
	rm -rf $(VENV) work
