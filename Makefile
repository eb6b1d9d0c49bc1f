# make train            the main job: KEEP=0.25, more parameters by P="-p epochs 2 -p head linear", another folder by OUT=runs/mine
# make test             every notebook and every test
# make env              only the environment; PYTHON=python3.12 and VENV=/some/where choose what it is made of and where it goes
KEEP ?= 0.1
P ?=
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null && echo $$p && exit; done; echo python3)
BIN := $(VENV)/bin
DEPS := settings.ini setup.py pyproject.toml constraints.txt
MADE := $(VENV)/.made-$(shell (pwd; cat $(DEPS)) | cksum | cut -d' ' -f1)
OUT ?= runs/$@-keep$(KEEP)$(shell echo ' $(P)' | sed -E 's/ -[pryf] +/-/g; s/[^A-Za-z0-9.]+/-/g; s/-$$//')

.PHONY: help env train test ablation figures benchmark predict prepare readme
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

env: $(MADE)

# The mark is made last and named after the dependency files: no mark of any name means that an environment was never finished.
$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or \
	    sys.exit("clca needs Python 3.11 or 3.12 and $(PYTHON) is %d.%d: install one of them, or name it with make PYTHON=..." % v)'
	@if [ -e '$(VENV)' ] && [ ! -e '$(VENV)/pyvenv.cfg' ]; then \
	    echo '$(VENV) exists and is not a virtual environment: name another place with make VENV=...' >&2; exit 1; fi
	@if ls '$(VENV)'/.made-* >/dev/null 2>&1; then rm -f '$(VENV)'/.made-*; else $(PYTHON) -m venv --clear '$(VENV)'; fi
	@echo 'Making the environment in $(VENV): several minutes and gigabytes, once.'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,export]'
	@touch '$@'

# $(call run,parameters): the notebook named like the target, executed into its folder, then what it measured
define run
	@mkdir -p '$(OUT)'
	$(BIN)/python -m papermill nbs/$@.ipynb '$(OUT)/$@.ipynb' $(1) $(P) --log-output --no-progress-bar </dev/null
	@$(BIN)/python -c "from clca.repository import show_results; show_results('$(OUT)')"
endef

train: $(MADE)
	$(call run,-p out '$(OUT)' -p keep '$(KEEP)')

ablation figures benchmark predict: OUT = runs/$@
ablation benchmark predict: $(MADE)
	$(call run,-p out '$(OUT)')

figures: $(MADE)
	$(call run)

test: $(MADE)
	$(BIN)/python -m pytest --durations=5 $(T)

readme: $(MADE)
	$(BIN)/python -c "from clca.repository import write_readme; write_readme()"

# what to run before a commit
prepare: $(MADE)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(MAKE) readme
