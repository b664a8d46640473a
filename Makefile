# make help lists what there is. Everything stays inside this folder: .venv (packages), .cache (models), work (results).
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

RECIPE ?= legal
# Where the results go; empty: work/$(RECIPE).
WORK ?=
# Made by the demo and signs its bundle: shows how signing works, proves no origin, and says so itself.
DEMO_KEY = $(or $(WORK),work/$(RECIPE))/demo-key
# More overrides for the demo, for example: make demo ARGS="sft.max_steps=20"
ARGS ?=

# After the installation nothing is fetched: what is not there is an error, not a download.
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
# A thread that waits actively for its turn costs other processes six times their speed (measured: 3.7 s a step became 22 s).
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

VENV_PATH := PATH="$(CURDIR)/.venv/bin:$$PATH"

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install everything into .venv and build the embedded model; costs nothing when it is done
	@scripts/setup.sh

demo: setup  ## from documents to a proven checkpoint on this machine: make demo [RECIPE=legal] [WORK=folder]
	@test -f recipes/$(RECIPE).yaml || { echo "demo: there is no recipes/$(RECIPE).yaml; there are:" $(basename $(notdir $(wildcard recipes/*.yaml))) >&2; exit 2; }
	@echo '+ accelerate launch finetune/train.py recipe=$(RECIPE) model=smollm2_135m$(if $(WORK), work=$(WORK))$(if $(ARGS), $(ARGS))'
	@test -f $(DEMO_KEY)/signing.key || { $(VENV_PATH) finetune keygen $(DEMO_KEY) --demo; }
	@$(VENV_PATH) HF_HOME="$${FINETUNE_HOME:-$(CURDIR)/.cache}/huggingface" OMP_NUM_THREADS="$${OMP_NUM_THREADS:-$$(nproc)}" \
	    accelerate launch finetune/train.py recipe=$(RECIPE) model=smollm2_135m $(if $(WORK),work=$(WORK)) \
	    handoff.signing_key=$(DEMO_KEY)/signing.key "handoff.signer='demo key'" $(ARGS)

test: setup  ## lint, then every test: fast ones first, then slow ones, then those that start several processes
	@$(VENV_PATH) scripts/test.sh

lint: setup  ## ruff and mypy
	@$(VENV_PATH) scripts/test.sh lint

clean:  ## remove the environments, .cache and work; asks nothing
	rm -rf .venv .venv-serve .venv-quantise .cache work .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
