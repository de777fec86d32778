# Type `make` to see what there is.
.DEFAULT_GOAL := help
.PHONY: help serve demo test lint format protos baseline lock dist tools env clean bench-engine bench-load bench-server bench-swap bench-update parity chaos gpu
bin := .venv/bin
# A proxy of this machine has no way to the hub beside us.
hub-http-env := env no_proxy=127.0.0.1
hub-http := --config deploy/hotslot-http.toml --serve-hub state/hub

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: env ## Serve the demo model here, in the foreground; Ctrl-C ends it. HUB=http: its hub is asked over HTTP
	@exec $(hub-$(HUB)-env) $(bin)/hotslot serve --demo $(hub-$(HUB))

demo: env ## A tour of two minutes: updates, refusals, rollbacks and deaths under load
	@$(bin)/python -m dev.demo.tour $(ARGS)

test: env tools ## Run the tests; choose some with ARGS="-k name"
	@$(bin)/pytest $(ARGS)

lint: env ## Check style, types and contracts
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/buf lint
	$(bin)/buf breaking protos --against protos/baseline.binpb

format: env ## Put code into its one form, and mend what can be mended
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

protos: env ## Make the generated code beside the .proto files again
	@$(bin)/python -m dev.scripts.protos

baseline: env ## Accept the public contracts as they are: what a release promises from now on
	@$(bin)/buf build protos --output protos/baseline.binpb

lock: env ## Choose versions of all dependencies again; ARGS=--upgrade for the newest
	@dev/scripts/lock $(ARGS)

dist: env ## Build the wheel and the source archive into dist/
	@rm -rf dist
	@$(bin)/python -m hatchling build

tools: env ## Build grpcurl and the Go health checker that tests call
	@dev/scripts/tools

bench-engine: env ## Measure an answer of the large OFA beside this machine's peak (makes 5 GB under .bench once)
	@$(bin)/python -m dev.bench.engine $(ARGS)

bench-load: env ## Measure how fast and lean the large OFA is loaded, 50 times (makes 5 GB under .bench once)
	@$(bin)/python -m dev.bench.load $(ARGS)

bench-server: env tools ## Measure what the server costs, with an engine that does nothing
	@$(bin)/python -m dev.bench.server --loadgen .tools/bin/loadgen $(ARGS)

bench-swap: env ## Measure what callers notice of swaps and deaths, on the demo model
	@$(bin)/python -m dev.bench.swap $(ARGS)

bench-update: env ## Measure an update step by step beside what this machine can do (8 GB for a while; ARGS="--size middle": 0.6)
	@$(bin)/python -m dev.bench.update $(ARGS)

parity: env ## Compare our engine with the stock pipeline, live, in an environment of its own (about 6 GB)
	@dev/scripts/parity-env
	.venv-parity/bin/python -m dev.parity.fixtures --check
	.venv-parity/bin/python -m dev.parity.compare --folder examples/shapes/v1.0.0 $(ARGS)

gpu: env ## Fill a real card and see what becomes of it, then measure it (needs a CUDA device; is skipped without one)
	@$(bin)/pytest -m gpu -rs tests/gpu
	@$(bin)/python -m dev.bench.card $(ARGS)

chaos: env ## Everything that takes too long for `make test`, on real processes; ARGS=--list tells what
	@$(bin)/python -m dev.chaos $(ARGS)

env: ## Make .venv, if it is not up to date
	@dev/scripts/bootstrap

clean: ## Remove what was made here (the next `make` makes it again)
	rm -rf .bench .venv .venv-parity .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
