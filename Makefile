# Kubebooth. `make` alone explains the targets.
SHELL := bash
.DEFAULT_GOAL := help
export TORCH ?= default
PY := .venv/bin/python
NAME ?=
ROOMS := api/kubebooth_api store/kubebooth_store operator/kubebooth_operator \
  trainer-image/kubebooth_trainer cli/kubebooth_cli cluster/kubebooth_cluster

.PHONY: help
help: ## Explain the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  TORCH=cpu picks the small build of torch (needs the internet); NAME=store picks a benchmark."

.PHONY: setup
setup: ## Install everything into .venv (done by every other target when needed)
	@hack/setup.sh

.PHONY: demo
demo: setup ## The main job: a one-machine Kubernetes, helm install, kubectl apply, a trained model
	@$(PY) examples/demo.py

.PHONY: down
down: setup ## Stop the demo's cluster; keeps its data
	@$(PY) -m kubebooth_cluster down

.PHONY: clean
clean: setup ## Stop the demo's cluster and remove its data
	@$(PY) -m kubebooth_cluster clean

.PHONY: test
test: setup controlplane ## Set up and run all tests (15 to 25 minutes; 8 more the first time)
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(ARGS)

.PHONY: test-long
test-long: setup ## Kill trainings of every family, method and stage mode (about two hours)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m long $(ARGS)

.PHONY: controlplane
controlplane: setup ## Find, download or build the control plane (a build takes 8 minutes, once)
	@$(PY) -m kubebooth_cluster binaries

.PHONY: lint
lint: setup ## Format, lint, types, import contracts, generated files
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) -m kubebooth_api.crd --check
	$(PY) charts/generate.py --check

.PHONY: format
format: setup ## Format the code and mend what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: generate
generate: setup ## Regenerate CRDs, the field reference and the chart's copies
	$(PY) -m kubebooth_api.crd
	$(PY) charts/generate.py

.PHONY: bench
bench: setup controlplane ## Run the benchmarks, or one: make bench NAME=store
	@for name in $(or $(NAME),operator failover store conversion cache checkpoint train); do \
	  echo "== bench.$$name"; $(PY) -m bench.$$name || exit 1; done
