# make train            the main job: KEEP=0.25, more parameters by P="-p epochs 2 -p head linear", another folder by OUT=runs/mine
# make test             every notebook, every test and ruff
# make test-fast        in two minutes what breaks most often: all but the tests marked slow, which tests/conftest.py lists
# make interop          whatever else a timm ViT works with, tried with ours: installs the clients, writes docs/works_with.md
# make coverage         lines and branches of method and tools that examples and tests run: htmlcov/, fails under 95 %
# make mutants          small changes of the method that no assertion notices; MUTANTS='clca.tokens*' names some
# make audit            known vulnerabilities of the versions in constraints.txt, as PyPI knows them
# make docs             the notebooks as a site in _docs/html
# make env              only the environment; PYTHON=python3.12 and VENV=/some/where choose what it is made of and where it goes
KEEP ?= 0.1
P ?=
VENV ?= .venv
ifneq ($(words $(subst ~, ~ ,$(subst ', ' ,$(subst :, : ,$(VENV))))),1)
$(error VENV is '$(VENV)': make cannot work with spaces, quotes, : or ~ in it, so write it out or name another place)
endif
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null && echo $$p && exit; done; echo python3)
BIN := $(VENV)/bin
DEPS := settings.ini setup.py pyproject.toml constraints.txt
MADE := $(VENV)/.made-$(shell (pwd; cat $(DEPS)) | cksum | cut -d' ' -f1)
OUT ?=
export KEEP P OUT

.PHONY: help env train test test-fast interop coverage mutants audit docs ablation figures benchmark predict prepare readme
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

env: $(MADE)

# The mark is made last and named after the dependency files: no mark of any name means that an environment was never finished.
$(MADE):
	@'$(PYTHON)' -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or \
	    sys.exit("clca needs Python 3.11 or 3.12 and $(PYTHON) is %d.%d: install one of them, or name it with make PYTHON=..." % v)'
	@if [ -e '$(VENV)' ] && [ ! -e '$(VENV)/pyvenv.cfg' ]; then \
	    echo '$(VENV) exists and is not a virtual environment: name another place with make VENV=...' >&2; exit 1; fi
	@if ls '$(VENV)'/.made-* >/dev/null 2>&1; then rm -f '$(VENV)'/.made-*; else '$(PYTHON)' -m venv --clear '$(VENV)'; fi
	@echo 'Making the environment in $(VENV): several minutes and gigabytes, once.'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,export]'
	@touch '$@'

# $(call run,folder,parameters): the notebook named like the target, executed into its folder, then what it measured.
# A relative folder is seen from CLCA_ROOT, as the notebooks see it, so that notebook and results come to one place.
define run
	@out="$${OUT:-$(1)}"; if [ "$$CLCA_ROOT" ] && [ "$${out#/}" = "$$out" ]; then \
	mkdir -p "$$CLCA_ROOT" && out="$$(cd "$$CLCA_ROOT" && pwd)/$$out"; fi; \
	mkdir -p "$$out"; echo "papermill nbs/$@.ipynb $$out/$@.ipynb"; \
	$(BIN)/python -m papermill nbs/$@.ipynb "$$out/$@.ipynb" $(2) $(P) --log-output --no-progress-bar </dev/null && \
	$(BIN)/python docs/repository.py results "$$out"
endef
# What P says, as a part of a name: other parameters have another folder.
SLUG = $$(printf '%s' " $$P" | tr '\n' ' ' | sed -E 's/ -[pryf] +/-/g; s/[^A-Za-z0-9.]+/-/g; s/-$$//')

train: $(MADE)
	$(call run,runs/train-keep$$KEEP$(SLUG),-p out "$$out" -p keep "$$KEEP")

benchmark predict: $(MADE)
	$(call run,runs/$@$(SLUG),-p out "$$out")

ablation: $(MADE)
	$(call run,runs/$@,-p out "$$out")

figures: $(MADE)
	$(call run,runs/$@)

test: $(MADE)
	$(BIN)/python -m pytest --durations=5 $(T)

test-fast: $(MADE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=5 -m 'not slow' $(T)

interop: $(MADE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[interop]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/interop -m client --table docs/works_with.md $(T)

# The examples of the notebooks, the quick tests that see what these do not, and all of what is written to a file.
COVERING := checkpoints weights open timm properties
coverage: $(MADE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --cov --cov-report= tests/examples.py $(COVERING:%=tests/test_%.py) $(T)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov --cov-append --cov-report=html tests/test_export.py $(T)

mutants: $(MADE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

audit: $(MADE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[audit]'
	@$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r constraints.txt || { \
	    echo 'If something was not found or not reached, nothing was audited: run this where https://pypi.org/pypi/torch/json is.' >&2; \
	    exit 1; }

docs: $(MADE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	rm -rf _docs && mkdir -p _docs/source && cp -r nbs figures docs/index.md docs/works_with.md _docs/source
	$(BIN)/python -m sphinx --quiet -c docs _docs/source _docs/html

readme: $(MADE)
	$(BIN)/python docs/repository.py readme

# what to run before a commit
prepare: $(MADE)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -m ruff check nbs tests docs
	$(MAKE) readme
