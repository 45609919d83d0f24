# make install | test | benchmarks-smoke | lint | docs | demo | constraints | clean
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
# With a GPU FBGEMM's CUDA build; without, a stand-in of the same name that brings the CPU build.
FBGEMM := $(if $(GPU),fbgemm-gpu==1.8.0,./packaging/fbgemm-gpu)

.PHONY: install test benchmarks-smoke lint docs demo constraints clean tree

install: $(INSTALLED)

# torch goes first: what FBGEMM is built against. Versions are those of constraints.txt, so that two installations are alike.
$(INSTALLED): pyproject.toml packaging/fbgemm-gpu/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt torch "setuptools>=77" "setuptools-scm>=8"
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation $(FBGEMM)
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	$(BIN)/python -m pip check
	touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

# Every documented command of benchmarks/ at its smallest size.
benchmarks-smoke: $(INSTALLED)
	$(BIN)/python -m pytest -m benchmark tests/test_benchmarks.py

lint: $(INSTALLED) tree
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd build/typing && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p prectr_torchrec

# The documentation as a site, in build/site; a warning is an error.
docs: .venv/.docs tree
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable ".[docs]"
	touch $@

# The newest versions of everything but torch, FBGEMM and TorchRec, for CI to try and to commit.
constraints: $(INSTALLED)
	$(BIN)/python -m pip install --upgrade --upgrade-strategy eager --no-build-isolation "torch==2.13.*" $(FBGEMM) "torchrec==1.8.*" \
		--editable ".[dev,docs]"
	$(BIN)/python -m pip check
	(head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -v '^fbgemm\| @ ' | sed 's/+cpu$$//') > build/constraints.txt
	mv build/constraints.txt constraints.txt
	$(MAKE) lint test

# mypy and mkdocstrings know nothing of mapped packages, so they are shown the tree as it is installed: modules/ as
# prectr_torchrec.modules, ...
tree:
	rm -rf build/typing && mkdir -p build/typing/prectr_torchrec
	ln -s $(CURDIR)/prectr_torchrec/* $(CURDIR)/modules $(CURDIR)/launchers $(CURDIR)/configs build/typing/prectr_torchrec

demo: $(INSTALLED)
	$(BIN)/prectr demo

clean:
	rm -rf .venv build runs/demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
