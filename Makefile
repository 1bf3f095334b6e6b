# The study's commands; `make help` lists them.
#
# Make decides which notebooks to execute (an executed copy in data/runs/ older than what it came from is made anew);
# the results store decides what to compute. Variables are set on the command line: `make figures PROFILE=smoke`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Variables
PROFILE = embedded## what to run: embedded (laptop, no hub), smoke (seconds), paper (one 80 GB GPU), or your own file
DEVICE =## cpu, cuda or auto (a GPU where there is one) instead of the profile's
MODEL =## hub id or local folder to study instead of the profile's model
REVISION =## hub revision of MODEL
TRUST_REMOTE_CODE =## yes: run code that comes with MODEL, or with a task of your own
PARAMS =## values for the notebooks' own parameters: "limit=20 export_to='a folder'"
NOTEBOOKS =## only these, by number or name: "01 02"; all if empty
VENV = .venv## where the environment lies; empty: use (and install into) the Python that is active, e.g. conda's
PYTHON =## Python 3.11 to 3.13 to build the environment with; the first one found if empty

##@ Commands
help: ## show this
	@awk 'BEGIN { FS = " *=.*## *|:.*## *" } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5); next } \
	  /^[A-Za-z_-]+( =|:).*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- The environment -------------------------------------------------------------------------------------------------

# A loop over what runs, not over what is found: a version manager leaves commands that only say "not installed".
find_python = for python in $(CANDIDATES); do \
  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then echo $$python; break; fi; done
# Not 3.14: gensim has no wheel for it yet and would have to be compiled.
CANDIDATES = $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
# Looked for when first needed, and once.
builder = $(eval builder := $$(shell $$(find_python)))$(or $(builder),$(error No Python 3.11 to 3.13 by the name of \
  $(CANDIDATES): install one, or name it with PYTHON=))

PY := $(if $(VENV),$(VENV)/bin/python,python)
# Written when the environment is complete, so that an interrupted setup is finished by the next call. It holds the
# place of this clone, which an editable install depends on. Without a VENV each Python has one of its own.
READY := $(if $(VENV),$(VENV)/ready,build/ready$(shell command -v python | tr -c '[:alnum:]\n' -))
# There while pip installs: an environment in which pip was killed may look whole to pip, so it is built anew.
INSTALLING := $(VENV)/installing
usable := $(shell $(PY) -c '' 2>/dev/null && [ "$$(cat $(READY) 2>/dev/null)" = '$(CURDIR)' ] && echo yes)

setup: $(READY) ## build the environment, fetch the embedded model; repairs a setup that was interrupted

$(READY): pyproject.toml requirements.lock src/layer_redundancy/data/requirements-embedded.txt $(if $(usable),,FORCE)
ifneq ($(VENV),)
	@if [ -n "$$(ls -A $(VENV) 2>/dev/null)" ] && ! [ -e $(VENV)/pyvenv.cfg -o -e $(INSTALLING) ]; then \
	  echo "VENV=$(VENV) is something else than a virtual environment: choose another folder"; exit 1; fi
	@if [ -e $(INSTALLING) ] || ! $(PY) -c 'import pip' 2>/dev/null; then \
	  echo "Building the environment in $(VENV)"; \
	  rm -rf $(VENV) && mkdir -p $(VENV) && touch $(INSTALLING) && $(builder) -m venv $(VENV); fi
	@touch $(INSTALLING)
endif
	$(PY) -m pip install --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
ifneq ($(VENV),)
	@rm $(INSTALLING)
endif
	$(PY) -m layer_redundancy.models.smollm2
	@mkdir -p $(@D) && echo '$(CURDIR)' > $@

# --- Notebooks -------------------------------------------------------------------------------------------------------

export PYTHONHASHSEED := 0
export TOKENIZERS_PARALLELISM := false
export JUPYTER_PREFER_ENV_PATH := 1
export LAYER_REDUNDANCY_DEVICE := $(DEVICE)

# The embedded model and its texts come from packages: looking for news on a hub would only need a network.
OFFLINE := $(if $(MODEL)$(filter-out smoke embedded,$(PROFILE)),,HF_HUB_OFFLINE=1)

# A text as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
TRUST := $(if $(filter yes,$(TRUST_REMOTE_CODE)),--trust-remote-code)
OF_MODEL = --model $(call quoted,$(MODEL)) --revision $(call quoted,$(REVISION)) $(TRUST)

figures: ## execute the notebooks; their figures and tables go to figures/<PROFILE>/

# Everything below needs to know the folder of the run, so it is asked for (and PROFILE, MODEL, PARAMS and NOTEBOOKS are
# checked) only for goals that run notebooks, before a minute is spent on setup.
ifneq ($(filter figures data/runs/%,$(MAKECMDGOALS)),)

ALL := $(sort $(basename $(notdir $(wildcard notebooks/[0-9]*.ipynb))))
$(if $(ALL),,$(error no notebooks in notebooks/))
pick = $(or $(filter $(1) $(1)_% 0$(1)_%,$(ALL)),$(error no notebook "$(1)": choose from $(ALL)))
CHOSEN := $(if $(NOTEBOOKS),$(foreach name,$(NOTEBOOKS),$(call pick,$(basename $(notdir $(name))))),$(ALL))

# The profiles need nothing but the standard library, so any Python can be asked.
ask = $(if $(usable),$(PY),$(if $(VENV),$(builder),python)) -m layer_redundancy.config.run_folder
ANSWER := $(shell PYTHONPATH=src $(ask) $(call quoted,$(PROFILE)) $(call quoted,$(MODEL)) $(call quoted,$(REVISION)) \
  $(call quoted,$(value PARAMS)) $(CHOSEN) 2>&1)
FOLDER := $(patsubst folder=%,%,$(filter folder=%,$(ANSWER)))
$(if $(FOLDER),,$(error $(ANSWER)))
# The parameters that a notebook is given: all of them, if it has one of them.
TAKES := $(patsubst takes=%,%,$(filter takes=%,$(ANSWER)))
given = $(if $(filter $(1),$(TAKES)),$(value PARAMS))

RUNS := $(CHOSEN:%=data/runs/$(FOLDER)/%.ipynb)
SETTINGS := data/runs/$(FOLDER)/.settings
CODE := $(shell find src/layer_redundancy -type f ! -name "*.pyc" ! -path "* *" 2>/dev/null)
# What the run should have given, where that is known: the profile's own model and parameters.
EXPECTED := $(if $(value PARAMS),,$(wildcard data/expected/$(FOLDER)))
# Figures were made also where another processor gives other numbers.
NO_FAIL = --no-fail
# Deleted figures are drawn again, although the executed notebooks are there.
REDRAW := $(if $(wildcard figures/$(FOLDER)/*),,FORCE)

# The profile's further models, each as MODEL:01,03 with the notebooks that it has, and which of them were chosen.
FURTHER := $(patsubst further=%,%,$(filter further=%,$(ANSWER)))
comma := ,
model_of = $(firstword $(subst :, ,$(1)))
numbers = $(foreach name,$(1),$(firstword $(subst _, ,$(name))))
own = $(filter $(call numbers,$(CHOSEN)),$(subst $(comma), ,$(lastword $(subst :, ,$(1)))))

figures: $(RUNS)
	@echo "Figures and tables: figures/$(FOLDER)/   executed notebooks: data/runs/$(FOLDER)/"
	@$(foreach further,$(FURTHER),$(if $(call own,$(further)),$(MAKE) --no-print-directory figures PROFILE=$(call quoted,$(PROFILE)) \
	  MODEL='$(call model_of,$(further))' NOTEBOOKS='$(call own,$(further))' \
	  $(if $(filter $(call own,$(further)),$(call numbers,$(TAKES))),,PARAMS=) && ))true
	@$(if $(EXPECTED),$(PY) -m layer_redundancy.cli verify $(OF_RUN) --notebooks '$(NOTEBOOKS)' --brief $(NO_FAIL))

.SECONDEXPANSION:
$(RUNS): data/runs/$(FOLDER)/%.ipynb: notebooks/%.ipynb $(CODE) $(SETTINGS) $$(@D)/.$$*.parameters $(READY) $(REDRAW)
	@$(OFFLINE) $(PY) -m layer_redundancy.run_notebook $< --output $@ --profile $(call quoted,$(PROFILE)) $(OF_MODEL) \
	  $(if $(call given,$*),--parameters $(call quoted,$(call given,$*)))

# What is no part of the folder's name; touched only when it changes.
note = mkdir -p $(@D) && printf '%s\n' $(call quoted,$(1)) > $@.new && \
  if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
$(SETTINGS): FORCE
	@$(call note,$(REVISION) $(TRUST_REMOTE_CODE) $(filter digest=%,$(ANSWER)))
$(CHOSEN:%=data/runs/$(FOLDER)/.%.parameters): data/runs/$(FOLDER)/.%.parameters: FORCE
	@$(call note,$(call given,$*))

endif

OF_PROFILE = $(call quoted,$(PROFILE)) $(OF_MODEL)
OF_RUN = $(call quoted,$(PROFILE)) --model $(call quoted,$(MODEL)) --revision $(call quoted,$(REVISION))
verify: $(READY) ## compare a run's tables with those in data/expected/; fails if one is not as expected
	@$(PY) -m layer_redundancy.cli verify $(OF_RUN) --notebooks '$(NOTEBOOKS)'

expect: $(READY) ## make the tables of a whole run those in data/expected/
	@$(PY) -m layer_redundancy.cli verify $(OF_RUN) --renew

plan: $(READY) ## what a run takes, before it starts: downloads, licences, disk, memory, work and hours on this device
	@$(OFFLINE) $(PY) -m layer_redundancy.cli plan $(OF_PROFILE) --notebooks '$(NOTEBOOKS)'

prefetch: $(READY) ## download what a profile needs, once; then HF_HUB_OFFLINE=1 make figures needs no network
	@$(OFFLINE) $(PY) -m layer_redundancy.planning.downloads $(OF_PROFILE)

# With what the paper's GPTQ files take, so that they are rehearsed too; without it notebook 07 leaves them out. In a
# folder of its own, since a test changes nothing that users run in: only `make gptq` does.
GPTQ := build/gptq
rehearse: $(READY) ## the paper profile in small, tiny random models on a hub of this machine (minutes)
	@$(MAKE) --no-print-directory $(GPTQ)/ready || echo "the ready GPTQ checkpoint will be left out"
	@$(PY) -m rehearsal.run --notebooks '$(NOTEBOOKS)'

$(GPTQ)/ready: data/requirements-gptq.txt $(READY)
	rm -rf $(GPTQ)
	$(PY) -m pip install --disable-pip-version-check --no-deps --target $(GPTQ) -r data/requirements-gptq.txt
	@mkdir -p $(GPTQ) && touch $@

# Two at a time: most of what so small a run takes is starting Python and drawing figures.
smoke: ## every notebook in small: does it run, and give what it gave?
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 figures PROFILE=smoke NO_FAIL=

rwkv-train: $(READY) ## train the small RWKV anew (an hour on two cores; stopped, it goes on where it was)
	@$(PY) -m tools.rwkv.train

gptq: $(READY) ## install what ready GPTQ checkpoints take (gptqmodel, optimum), for MODEL= or notebook 07's ready=
	$(PY) -m pip install --disable-pip-version-check --no-deps -r data/requirements-gptq.txt

# The peer whose other libraries would not go with ours has a folder of its own.
PEER := build/short-transformers
bench: $(READY) $(PEER)/ready ## time shared sweeps against what others do; results go to figures/bench/ (about an hour)
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.sweeps --peer $(PEER)
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.rwkv_prefill

bench-gpu: $(READY) ## on a GPU: the embedded profile's time, a Llama-2-7B's shape, what was planned against the clock
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.gpu

$(PEER)/ready: benchmarks/requirements.txt $(READY)
	rm -rf $(PEER)
	$(PY) -m pip install --disable-pip-version-check --no-deps --target $(PEER) -r benchmarks/requirements.txt
	@mkdir -p $(PEER) && touch $@

# --- Development -----------------------------------------------------------------------------------------------------

PYTEST = $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
# Notebooks in small and the rehearsal at once: each by itself leaves a core idle while it plans, or ends its last run.
# What the pages tell a user to type comes last, with what the notebooks have stored by then.
PAGES = tests/test_code_blocks.py
test: $(READY) ## unit tests, every notebook on the smoke profile, a rehearsal of the paper profile, what the pages say to type
	$(PYTEST) --ignore $(PAGES)
	@$(MAKE) --no-print-directory rehearse & rehearsal=$$!; $(MAKE) --no-print-directory smoke; smoke=$$?; \
	  wait $$rehearsal && exit $$smoke
	$(PYTEST) $(PAGES)

test-fast: $(READY) ## the unit tests that take no longer than a second or two each (three minutes on two cores)
	$(PYTEST) -m "not slow"

test-architectures: $(READY) ## try every architecture that transformers has, and write docs/architectures.md anew (eight minutes on two cores)
	rm -rf build/architectures
	$(PYTEST) --every-architecture tests/architectures

lint: $(READY) ## style, types, which folder may import which; notebooks are committed without outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache
	$(PY) -m nbstripout --verify $(STRIP) $(wildcard notebooks/*.ipynb) </dev/null

format: $(READY) ## put right what lint finds, where a machine can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) -m nbstripout $(STRIP) $(wildcard notebooks/*.ipynb) </dev/null

STRIP := --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version"

docs: $(READY) ## make README.md and docs/ anew, from docs/templates/, the committed tables and executed notebooks
	@$(PY) -m tools.docs.make

lab: $(READY) ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

# uv comes on demand: nobody but who changes a version needs it. torch pins its CUDA packages itself; locking them would
# make those without a GPU download gigabytes.
lock: $(READY) ## choose the versions in requirements.lock anew, from pyproject.toml
	$(PY) -m pip install --quiet uv
	@mkdir -p build
	{ echo "# Exact versions of everything that pyproject.toml needs, on every platform; written by \`make lock\`."; \
	  echo "# CUDA packages are left out: torch pins its own, and only where it needs them."; \
	  $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	    pyproject.toml | grep -Ev '^(cuda-|nvidia-[^m]|triton==)'; } > build/lock && mv build/lock requirements.lock

clean: ## remove executed notebooks and figures that are not committed; computed results stay
	rm -rf data/runs .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find figures -mindepth 1 -maxdepth 1 ! -name embedded ! -name bench -exec rm -rf {} +

distclean: clean ## remove computed results, downloads and the environment too
	rm -rf data/results data/cache build .venv

FORCE:
.PHONY: help setup figures verify expect plan prefetch rehearse smoke rwkv-train gptq bench bench-gpu test test-fast test-architectures lint format docs lab lock clean distclean FORCE
