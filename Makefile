# make train            the main job: KEEP=0.25, more parameters by P="-p epochs 2 -p head linear", another folder by OUT=runs/mine
# make rerun RUN=…      a run again from its record alone (its folder, or its id in data/runs), and what is equal
# make ablation         the small grid: plan, runs and report by Snakemake, CORES=2 at a time; P="-p preset smoke" plans another
# make paper            the published grid on DATA=folder with the leaf sets; DRY=1 only says what is missing and what it costs;
# make paper|ablation    PROFILE=slurm or PROFILE=gpus: on a cluster, on all GPUs of this machine (workflow/README.md)
# make test             every notebook, every test and ruff
# make test-fast        in two minutes what breaks most often: all but the tests marked slow, which tests/conftest.py lists
# make interop          whatever else a timm ViT works with, tried with ours: installs the clients, writes docs/works_with.md
# make coverage         lines and branches of method and tools that examples and tests run: htmlcov/, fails under 95 %
# make mutants          small changes of the method that nothing notices; MUTANTS='clca.tokens*' names some
# make audit            known vulnerabilities of the versions in constraints.txt, as PyPI knows them
# make docs             the site in _docs/html: the notebooks, how-to pages, a reference, the results; without a network
# make notebooks        train, predict, comparison, benchmark and figures again, with what they show; N=train only one
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
CORES ?= 2
DATA ?=
PROFILE ?=
DRY ?=
export KEEP P OUT RUN DATA

.PHONY: help env train rerun test test-fast interop coverage mutants audit docs notebooks ablation paper figures benchmark predict prepare readme
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

env: $(MADE)

# The mark is made last and named after the dependency files: no mark of any name means that an environment was never finished.
# Each kernel would warn that its messages, which are signed and stay on this machine, are not encrypted.
$(MADE):
	@'$(PYTHON)' -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or \
	    sys.exit("clca needs Python 3.11 or 3.12 and $(PYTHON) is %d.%d: install one of them, or name it with make PYTHON=..." % v)'
	@if [ -e '$(VENV)' ] && [ ! -e '$(VENV)/pyvenv.cfg' ]; then \
	    echo '$(VENV) exists and is not a virtual environment: name another place with make VENV=...' >&2; exit 1; fi
	@if ls '$(VENV)'/.made-* >/dev/null 2>&1; then rm -f '$(VENV)'/.made-*; else '$(PYTHON)' -m venv --clear '$(VENV)'; fi
	@echo 'Making the environment in $(VENV): several minutes and gigabytes, once.'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,export]'
	@mkdir -p '$(VENV)/etc/ipython' && echo 'c.IPKernelApp.log_level = "ERROR"' > '$(VENV)/etc/ipython/ipython_kernel_config.py'
	@touch '$@'

# $(call papermill,folder,notebook,parameters): a notebook, executed into its folder.
# A relative folder is seen from CLCA_ROOT, as the notebooks see it, so that notebook and results come to one place.
define papermill
	@out="$${OUT:-$(1)}"; if [ "$$CLCA_ROOT" ] && [ "$${out#/}" = "$$out" ]; then \
	mkdir -p "$$CLCA_ROOT" && out="$$(cd "$$CLCA_ROOT" && pwd)/$$out"; fi; \
	mkdir -p "$$out"; echo "papermill nbs/$(2).ipynb $$out/$(2).ipynb"; \
	$(BIN)/python -m papermill nbs/$(2).ipynb "$$out/$(2).ipynb" $(3) $(P) --stdout-file - --stderr-file - --log-level WARNING --no-progress-bar </dev/null
endef
# $(call run,folder,parameters): the notebook named like the target, then what it measured.
define run
$(call papermill,$(1),$@,$(2)) && \
	$(BIN)/python docs/repository.py results "$$out"
endef
# What P says, as a part of a name: other parameters have another folder.
SLUG = $$(printf '%s' " $$P" | tr '\n' ' ' | sed -E 's/ -[pryf] +/-/g; s/[^A-Za-z0-9.]+/-/g; s/-$$//')

train: $(MADE)
	$(call run,runs/train-keep$$KEEP$(SLUG),-p out "$$out" -p keep "$$KEEP")

benchmark predict: $(MADE)
	$(call run,runs/$@$(SLUG),-p out "$$out")

# $(call sweep,folder,notebook that plans,parameters): plan, runs and report.
# Runs of other code are put aside and made again; ACCEPT_CODE=1 keeps them. If runs fail, what is there is reported.
define sweep
$(if $(filter slurm,$(PROFILE)),$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[slurm]')
$(call papermill,$(1),$(2),-p out "$$out" $(3)) && { \
	$(BIN)/python -m snakemake -s workflow/Snakefile -d "$$out" $(if $(PROFILE),--profile workflow/profiles/$(PROFILE),--cores $(CORES)) \
	$(if $(DRY),--dry-run --quiet rules) $(if $(ACCEPT_CODE),--config accept_code=1); \
	status=$$?; $(if $(DRY),,$(BIN)/python docs/repository.py results "$$out";) exit $$status; }
endef

ablation: $(MADE)
	$(call sweep,runs/$@,plan)

paper: $(MADE)
	$(call sweep,runs/$@,plan_paper,-r data "$$DATA" $(if $(DRY),-p dry True))

figures: $(MADE)
	$(call run,runs/$@)

rerun: $(MADE)
	@[ "$$RUN" ] || { echo 'Name a run: make rerun RUN=runs/mine, or an id in data/runs' >&2; exit 1; }
	$(BIN)/python docs/repository.py rerun "$$RUN"

test: $(MADE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=5 $(T)

test-fast: $(MADE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=5 -m 'not slow' $(T)

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
	$(BIN)/python docs/sources.py _docs

notebooks: $(MADE)
	$(BIN)/python docs/notebooks.py $(N)

readme: $(MADE)
	$(BIN)/python docs/repository.py readme

# what to run before a commit
prepare: $(MADE)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -m ruff check nbs tests docs
	$(MAKE) readme
