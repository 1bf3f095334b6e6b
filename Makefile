# The study's commands; `make help` lists them.
#
# Make decides which notebooks to execute (an executed copy in data/runs/ older than what it came from is made anew);
# the results store decides what to compute. Variables are set on the command line, `make figures PROFILE=smoke`, or in
# the environment.

$(if $(wildcard src/layer_redundancy),,$(error the study is not in this folder: give its folder, make -C FOLDER))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Variables
PROFILE ?= embedded## what to run: embedded (laptop, no hub), smoke (seconds), paper (one 80 GB GPU), or your own file
DEVICE ?=## cpu, cuda or auto (a GPU where there is one) instead of the profile's
MODEL ?=## hub id or local folder to study instead of the profile's model
MODELS ?=## study several models and compare them: "smollm2 gemma3-270m", or hub ids and folders
REVISION ?=## hub revision of MODEL
TRUST_REMOTE_CODE ?=## yes or no: run code that comes with MODEL, or with a task of your own
PARAMS ?=## values for the notebooks' own parameters: "limit=20 export_to='a folder'"
WORKERS ?=## measure in so many processes of this machine, one a GPU where there are GPUs
SCHEDULER ?=## measure on a Dask cluster that is there: tcp://HOST:PORT, or tls://HOST:PORT
TRUST_NETWORK ?=## yes or no: go to a SCHEDULER on another machine without TLS
NOTEBOOKS ?=## only these, by number or name: "01 02"; all if empty
DROPOUT ?=## dropout rate of make twin-train instead of the recipe's 0.1: trains both small models, ships neither
VENV ?= .venv## where the environment lies; empty: use (and install into) the Python that is active, e.g. conda's
PYTHON ?=## Python 3.11 to 3.13 to build the environment with; the first one found if empty

##@ Commands
help: ## show this
	@awk 'BEGIN { FS = " *[?]=.*## *|:.*## *" } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5); next } \
	  /^[A-Za-z_-]+( [?]=|:).*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- What the user gives ---------------------------------------------------------------------------------------------

OURS := PROFILE DEVICE MODEL MODELS REVISION TRUST_REMOTE_CODE PARAMS WORKERS SCHEDULER TRUST_NETWORK NOTEBOOKS DROPOUT VENV PYTHON
# On the command line, but none of ours: a slip of the pen, or meant for the environment.
OTHERS := $(strip $(foreach name,$(filter-out $(OURS),$(.VARIABLES)),$(if $(findstring command line,$(origin $(name))),$(name))))
GIVEN := $(foreach name,$(OURS),$(if $(findstring command line,$(origin $(name))),$(name)))
# From here on they are texts, whatever is in them: `$` and what make or a shell would make of it included.
$(foreach name,$(OURS),$(eval override $(name) := $$(value $(name))))

# A text as one word of the shell, whatever is in it but a line break.
quoted = '$(subst ','\'',$(1))'
define line_break


endef
$(foreach name,$(OURS),$(if $(findstring $(line_break),$($(name))),$(error $(name)= has a line break in it)))

hash := \#
UNFIT := ' " ` $$ & ; | < > ( ) * ? [ ] { } \ : % ! = , $(hash)
$(if $(word 2,$(VENV))$(strip $(foreach one,$(UNFIT),$(findstring $(one),$(VENV)))),$(error VENV=$(VENV) has \
  a space in it or a character that make or the shell would not leave alone: choose another folder))

# --- The environment -------------------------------------------------------------------------------------------------

# A loop over what runs, not over what is found: a version manager leaves commands that only say "not installed".
find_python = for python in $(CANDIDATES); do \
  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then echo "$$python"; break; fi; done
# Not 3.14: gensim has no wheel for it yet and would have to be compiled.
CANDIDATES = $(if $(PYTHON),$(call quoted,$(PYTHON)),python3.13 python3.12 python3.11 python3)
# Looked for when first needed, and once.
found = $(eval found := $$(shell $$(find_python)))$(found)
builder = $(if $(found),$(call quoted,$(found)),$(error No Python 3.11 to 3.13 by the name of \
  $(or $(PYTHON),$(CANDIDATES)): install one, or name it with PYTHON=))

PY := $(if $(VENV),$(VENV)/bin/python,python)
# Written when the environment is complete, so that an interrupted setup is finished by the next call. It holds the
# place of this clone, which an editable install depends on. Without a VENV each Python has one of its own.
READY := $(if $(VENV),$(VENV)/ready,build/ready$(shell command -v python | tr -c '[:alnum:]\n' -))
# There while pip installs: an environment in which pip was killed may look whole to pip, so it is built anew.
INSTALLING := $(VENV)/installing
usable := $(shell $(PY) -c '' 2>/dev/null && [ "$$(cat $(READY) 2>/dev/null)" = $(call quoted,$(CURDIR)) ] && echo yes)

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
	@mkdir -p $(@D) && printf '%s\n' $(call quoted,$(CURDIR)) > $@

# --- Notebooks -------------------------------------------------------------------------------------------------------

export PYTHONHASHSEED := 0
export TOKENIZERS_PARALLELISM := false
export JUPYTER_PREFER_ENV_PATH := 1
ifneq ($(DEVICE),)
export LAYER_REDUNDANCY_DEVICE := $(DEVICE)
endif
ifneq ($(MODELS),)
export LAYER_REDUNDANCY_MODELS := $(MODELS)
endif

# The embedded model and its texts come from packages: looking for news on a hub would only need a network.
EMBEDDED := smollm2 smollm2-135m-instruct gemma3-270m rwkv5-6.6m llama-6.6m
OFFLINE := $(if $(MODEL)$(filter-out $(EMBEDDED),$(MODELS))$(filter-out smoke embedded,$(PROFILE)),,HF_HUB_OFFLINE=1)
# Whatever speaks to the user: its messages name variables of make. Without a shell between, that make's own end reaches
# it too.
SPEAKING := LAYER_REDUNDANCY_DOOR=make
TALK := exec env $(SPEAKING)
# How many at a time, by make's -j; nothing if it does not say.
jobs = $(patsubst -j%,%,$(filter-out -j,$(filter -j%,$(MAKEFLAGS))))
TRUST := $(if $(filter yes,$(TRUST_REMOTE_CODE)),--trust-remote-code)
OF_MODEL = --model $(call quoted,$(MODEL)) --revision $(call quoted,$(REVISION)) $(TRUST)

figures: ## execute the notebooks; their figures and tables go to figures/<PROFILE>/

# What these goals would not look at.
unused = $(if $(filter $(1),$(MAKECMDGOALS)),$(if $(filter $(2),$(GIVEN)),$(error make $(firstword $(filter $(1),\
  $(MAKECMDGOALS))) does not know $(firstword $(filter $(2),$(GIVEN)))=: leave it out, or use make figures)))
$(call unused,smoke rehearse test,PROFILE)$(call unused,smoke test,MODELS)$(call unused,rehearse,MODEL MODELS REVISION PARAMS)$(call unused,expect,NOTEBOOKS PARAMS)
$(call unused,smoke rehearse test verify expect prefetch,WORKERS SCHEDULER TRUST_NETWORK)$(call unused,plan,SCHEDULER TRUST_NETWORK)

$(if $(filter DROPOUT,$(GIVEN)),$(foreach goal,$(or $(filter-out twin-train,$(MAKECMDGOALS)),$(if $(MAKECMDGOALS),,help)),$(error \
  make $(goal) does not know DROPOUT=: leave it out, or use make twin-train)))

# Whatever runs or plans notebooks: variables are checked, and the folder of the run is asked for, before a minute is
# spent on setup. A variable that is none of ours is looked at whatever the goal.
RUNNING := $(filter figures verify expect plan prefetch twin-train data/runs/%,$(MAKECMDGOALS))
ifneq ($(RUNNING)$(OTHERS)$(filter-out yes no,$(TRUST_REMOTE_CODE)),)

# The answer needs nothing but the standard library, so any Python can be asked.
ask = $(if $(usable),$(PY),$(if $(VENV),$(builder),python)) -m layer_redundancy.config.run_folder
ANSWER := $(shell PYTHONPATH=src $(SPEAKING) $(ask) $(foreach name,$(OURS) $(OTHERS),$(call quoted,$(name)=$(value $(name)))))
$(if $(filter ok,$(firstword $(ANSWER))),,$(error $(or $(ANSWER),there is no answer from the Python that make asks)))
answered = $(patsubst $(1)=%,%,$(filter $(1)=%,$(ANSWER)))

endif
ifneq ($(filter figures data/runs/%,$(MAKECMDGOALS)),)

# Each FOLDER/NOTEBOOK, with a digest of what decides it and make does not see; also those of the profile's further models.
ASKED := $(call answered,run)
RUNS := $(foreach run,$(ASKED),data/runs/$(firstword $(subst :, ,$(run))).ipynb)
CODE := $(shell find src/layer_redundancy -type f ! -name "*.pyc" ! -path "* *" 2>/dev/null)
# What the run should have given, where that is known: the profile's own model and parameters.
EXPECTED := $(if $(PARAMS),,$(if $(filter data/runs/$(call answered,folder)/%,$(RUNS)),$(wildcard data/expected/$(call answered,folder))))
# Figures were made also where another processor gives other numbers.
NO_FAIL = --no-fail
# Deleted figures are drawn again, although the executed notebooks are there.
redraw = $(if $(wildcard $(patsubst data/runs/%,figures/%,$(1))/*.*),,FORCE)
# That of a run, by its folder: a further model, or the user's.
space := $(subst ,, )
further = $(subst %25,%,$(subst %20,$(space),$(patsubst $(1):%,%,$(filter $(1):%,$(call answered,of)))))
model = $(call quoted,$(or $(call further,$(patsubst data/runs/%,%,$(1))),$(MODEL)))

# Where notebooks are measured before they are executed, if not by themselves.
CLUSTER := $(if $(WORKERS),--workers $(call quoted,$(WORKERS))) $(if $(SCHEDULER),--scheduler $(call quoted,$(SCHEDULER))) \
  $(if $(filter yes,$(TRUST_NETWORK)),--trust-network)

# Executes the runs $(1), by make's -j so many at a time; else as many as the machine is good for.
execute = $(TALK) $(OFFLINE) $(PY) -m layer_redundancy.run_notebooks --profile $(call quoted,$(PROFILE)) \
  --revision $(call quoted,$(REVISION)) $(TRUST) $(if $(PARAMS),--parameters $(call quoted,$(PARAMS))) \
  $(if $(jobs),--jobs $(jobs)) $(KEEP_GOING) $(CLUSTER) \
  $(foreach run,$(1),$(call quoted,notebooks/$(notdir $(run)):$(run):)$(call model,$(patsubst %/,%,$(dir $(run)))))

# A notebook that fails keeps none of the others from being run: they go on, and the summary ends it all.
figures: $(RUNS)
	@$(if $(STALE),$(call execute,$(filter $(STALE),$(RUNS))))
	@$(if $(EXPECTED),$(VERIFY) --notebooks $(call quoted,$(NOTEBOOKS)) --brief $(NO_FAIL); )compared=$$?; \
	  $(PY) -m layer_redundancy.run_summary $(RUNS) && exit $$compared
ifneq ($(filter figures,$(MAKECMDGOALS)),)
MAKEFLAGS += --keep-going
KEEP_GOING := --keep-going
# Put down here, and executed together, since they share what they import; in the order of RUNS, whatever that of make -j.
STALE :=
stale = $(eval STALE += $@)
endif

.SECONDEXPANSION:
$(RUNS): notebooks/$$(@F) $(CODE) $$(@D)/.$$(basename $$(@F)).settings $(READY) $$(call redraw,$$(@D))
	@$(if $(KEEP_GOING),$(stale),$(call execute,$@))

# Touched only when the digest changes.
$(foreach run,$(RUNS),$(dir $(run)).$(basename $(notdir $(run))).settings): FORCE
	@mkdir -p $(@D) && set -- $(filter $(patsubst data/runs/%,%,$(@D))/$(patsubst .%.settings,%,$(@F)):%,$(ASKED)) && \
	  { [ "$$(cat $@ 2>/dev/null)" = "$$*" ] || printf '%s\n' "$$*" > $@; }

endif

OF_PROFILE = $(call quoted,$(PROFILE)) $(OF_MODEL)
VERIFY = env $(SPEAKING) $(PY) -m layer_redundancy.cli verify $(call quoted,$(PROFILE)) --model $(call quoted,$(MODEL)) \
  --revision $(call quoted,$(REVISION))
verify: $(READY) ## compare a run's tables with those in data/expected/; fails if one is not as expected
	@$(VERIFY) --notebooks $(call quoted,$(NOTEBOOKS))

expect: $(READY) ## make the tables of a whole run those in data/expected/
	@$(VERIFY) --renew

plan: $(READY) ## what a run takes, before it starts: downloads, licences, disk, memory, work and hours on this device
	@$(TALK) $(OFFLINE) $(PY) -m layer_redundancy.cli plan $(OF_PROFILE) --notebooks $(call quoted,$(NOTEBOOKS)) \
	  $(if $(WORKERS),--workers $(call quoted,$(WORKERS)))

prefetch: $(READY) ## download what a profile needs, once; then HF_HUB_OFFLINE=1 make figures needs no network
	@$(TALK) $(OFFLINE) $(PY) -m layer_redundancy.planning.downloads $(OF_PROFILE)

# With what the paper's GPTQ files take, so that they are rehearsed too; without it notebook 07 leaves them out. In a
# folder of its own, since a test changes nothing that users run in: only `make gptq` does.
GPTQ := build/gptq
rehearse: $(READY) ## the paper profile in small, tiny random models on a hub of this machine (minutes)
	@$(MAKE) --no-print-directory $(GPTQ)/ready || echo "the ready GPTQ checkpoint will be left out"
	@$(PY) -m rehearsal.run --notebooks $(call quoted,$(NOTEBOOKS))

$(GPTQ)/ready: data/requirements-gptq.txt $(READY)
	rm -rf $(GPTQ)
	$(PY) -m pip install --disable-pip-version-check --no-deps --target $(GPTQ) -r data/requirements-gptq.txt
	@mkdir -p $(GPTQ) && touch $@

# Two at a time whatever the machine, since they take little memory.
smoke: ## every notebook in small: does it run, and give what it gave?
	@exec env OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 figures PROFILE=smoke NO_FAIL=

rwkv-train: $(READY) ## train the small RWKV anew (an hour on two cores; stopped, it goes on where it was)
	@$(PY) -m tools.small_models.train rwkv

twin-train: $(READY) ## train the RWKV's transformer twin anew (40 minutes on two cores; stopped, it goes on where it was); DROPOUT=0: both without dropout
	@$(PY) -m tools.small_models.train $(if $(DROPOUT),--dropout $(call quoted,$(DROPOUT)))

twin-rates: $(READY) ## try learning rates for both small models and write data/rates/small_models.csv (half an hour on two cores)
	@$(PY) -m tools.small_models.rates

rates: $(READY) ## look for learning rates on held-out training text and write the table that profiles take them from (hours; minutes on a GPU)
	@$(OFFLINE) $(PY) -m tools.rates --profile $(call quoted,$(PROFILE)) --device $(call quoted,$(DEVICE)) $(if $(jobs),--jobs $(jobs))

gptq: $(READY) ## install what ready GPTQ checkpoints take (gptqmodel, optimum), for MODEL= or notebook 07's ready=
	$(PY) -m pip install --disable-pip-version-check --no-deps -r data/requirements-gptq.txt

# The peer whose other libraries would not go with ours has a folder of its own.
PEER := build/short-transformers
bench: $(READY) $(PEER)/ready ## time shared sweeps against what others do, and a cluster, without a GPU; results go to figures/bench/ (half an hour on two cores)
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.sweeps --peer $(PEER)
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.rwkv_prefill
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.cluster

bench-notebooks: $(READY) ## where the time of every notebook goes, from an empty store; PROFILE= and NOTEBOOKS= say which
	@$(OFFLINE) $(PY) -m benchmarks.notebook_profile --profile $(call quoted,$(PROFILE)) --notebooks $(call quoted,$(NOTEBOOKS))

# Asked by way of NVML whether there is a GPU, CUDA is not started by whatever asks while it is imported.
bench-gpu: $(READY) ## on a GPU, in ten minutes: a Llama-2-7B's shape, plain forwards, the plan against the clock, all notebooks
	@HF_HUB_OFFLINE=1 PYTORCH_NVML_BASED_CUDA_CHECK=1 $(PY) -m benchmarks.gpu

bench-scaling: $(READY) ## what the paper profile would take on 1 to 1024 GPUs, simulated at rates that bench-gpu measured
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.scaling

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

# In one process: two of these models at once take more memory than a laptop has to spare.
test-gemma: $(READY) ## compare Gemma-3-270m with llama.cpp on the same file; downloads and converts it if it is not there (two minutes on two cores)
	$(PY) -m pytest --gemma tests/models/test_gemma3_whole.py

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
.PHONY: help setup figures verify expect plan prefetch rehearse smoke rwkv-train twin-train twin-rates rates gptq bench bench-gpu test test-fast test-architectures test-gemma lint format docs lab lock clean distclean FORCE
