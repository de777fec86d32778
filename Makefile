# `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: test-kserve tools-ghz help serve demo test lint format protos baseline lock dist tools env clean bench-engine bench-mgeo bench-load bench-memory bench-server bench-call bench-calls bench-overload bench-fair bench-canary bench-shadow bench-swap bench-restart bench-update soak parity fuzz chaos gpu bench-prepare clients-go clients-java clients-go-stubs rollouts bench-batch conformance clients clients-python bench-callers backfill
bin := .venv/bin
# A proxy of this machine cannot reach the local hub.
hub-http-env := env no_proxy=127.0.0.1
hub-http := --config deploy/hotslot-http.toml --serve-hub state/hub

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: env ## Serve both demo models in the foreground until Ctrl-C; HUB=http uses its hub over HTTP
	@exec $(hub-$(HUB)-env) $(bin)/hotslot serve --demo --log hotslot.log $(hub-$(HUB))

demo: env ## Show updates, refusals, rollbacks and crashes under load, in three minutes; ARGS="--equals 5" for more good revisions
	@$(bin)/python -m dev.demo $(ARGS)

test: env tools ## Run the tests; choose some with ARGS="-k name"
	@$(bin)/pytest $(ARGS)

.PHONY: test-rounds
test-rounds: env tools ## Run the tests that drive real processes ten times, five of them beside a process that takes a core (hours)
	@$(bin)/python -m dev.scripts.rounds $(ARGS)

lint: env ## Check style, types and contracts
	$(bin)/ruff check
	$(bin)/ruff format --check
	git ls-files -z | xargs -0 $(bin)/codespell
	$(bin)/mypy
	$(bin)/buf lint
	$(bin)/buf breaking protos --against protos/baseline.binpb

format: env ## Format code and apply automatic fixes
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

protos: env ## Generate the code beside the .proto files, and the Go client's if there is Go
	@$(bin)/python -m dev.scripts.protos
	@$(bin)/python -m dev.scripts.client_protos
	@if command -v go >/dev/null; then $(bin)/python -m dev.scripts.go_client; fi

clients: clients-python clients-go clients-java ## Build and test the clients of all languages

clients-python: env ## Build the Python client, and test it
	@$(bin)/pytest tests/clients/python

clients-go: env ## Build the Go client and run its tests with the race detector (needs Go)
	@$(bin)/python -m dev.scripts.go_client --check
	@cd clients/go && go vet ./... && go test -race ./...

clients-java: ## Build the Java client, run its tests, make its jars as for publication (needs a JDK 17 and Maven)
	@mvn -B -ntp -q -f clients/java/pom.xml verify

clients-go-stubs: env ## Generate the Go client's stubs from the contracts (needs Go)
	@$(bin)/python -m dev.scripts.go_client

baseline: env ## Accept the public contracts as the new compatibility baseline
	@$(bin)/buf build protos --output protos/baseline.binpb

lock: env ## Resolve the versions of all dependencies; ARGS=--upgrade takes the newest
	@dev/scripts/lock $(ARGS)

dist: env ## Build the wheel and the source archive into dist/
	@rm -rf dist
	@$(bin)/python -m hatchling build

.PHONY: release-dry-run
release-dry-run: env ## Build all artefacts of a release into dist/ and publish nothing (Java's with Maven)
	@$(bin)/python -m dev.scripts.release

tools: env ## Build grpcurl and the Go tools that tests use
	@dev/scripts/tools

bench-engine: env ## Measure the large OFA's latency against this machine's peak (creates 5 GB under .bench once)
	@$(bin)/python -m dev.bench.engine $(ARGS)

bench-mgeo: env ## Measure addresses a second of a base MGeo, alone, through a server, and of the stock pipeline (1 GB under .bench)
	@$(bin)/python -m dev.bench.mgeo $(ARGS)

bench-load: env ## Measure time and memory of 50 loads of the large OFA (creates 5 GB under .bench once)
	@$(bin)/python -m dev.bench.load $(ARGS)

bench-prepare: env tools ## Measure pictures prepared a second, alone and through a server with 16 and 32 callers
	@$(bin)/python -m dev.bench.prepare $(ARGS)

bench-memory: env tools ## Measure the server's memory while callers misbehave, against its limit
	@$(bin)/python -m dev.bench.memory $(ARGS)

bench-traces: env tools ## Measure what traces cost the server: off, 1 % and all calls, in turn
	@$(bin)/python -m dev.bench.traces $(ARGS)

bench-server: env tools ## Measure the server's own cost with an engine that does nothing
	@$(bin)/python -m dev.bench.server $(ARGS)

bench-call: env tools ## Measure where the server's CPU time of a unary call goes
	@$(bin)/python -m dev.bench.call_parts $(ARGS)

bench-calls: env tools ## Measure what a server delivers of what its engine computes in full calls
	@$(bin)/python -m dev.bench.calls $(ARGS)

bench-peers: env tools ## Measure what a call costs hotslot, MLServer, LitServe, Triton and bare grpc.aio, in turn (fetches them: 0.6 GB)
	@dev/scripts/peers-env
	@$(bin)/python -m dev.bench.peers $(ARGS)

bench-served: env tools ## Measure what hotslot, LitServe and MLServer deliver of what the demo model computes in full calls, in turn
	@dev/scripts/peers-env --without-triton
	@$(bin)/python -m dev.bench.served $(ARGS)

bench-overload: env tools ## Measure goodput of servers that are offered 1.25 to 4 times what they compute
	@$(bin)/python -m dev.bench.overload $(ARGS)

bench-fair: env tools ## Measure unary calls beside saturating streams, behind Envoy too, and two models on one device
	@$(bin)/python -m dev.bench.fair $(ARGS)

bench-canary: env ## Roll out 50 revisions by 5, 25, 50 and 100 % under load, ten of them bad: no call may be lost
	@$(bin)/python -m dev.bench.canary $(ARGS)

bench-shadow: env tools ## Measure what callers notice while a second slot answers a fifth of their calls too
	@$(bin)/python -m dev.bench.shadow $(ARGS)

rollouts: env ## Simulate 7,200 rollouts with true error rates: false alarms and what is found, as docs/rollouts.md (10 minutes)
	@$(bin)/python -m dev.rollouts $(ARGS)

bench-batch: env tools ## Run `hotslot batch` over 100,000 rows and kill it ten times; measure its rate, memory, and callers beside it
	@$(bin)/python -m dev.bench.batch $(ARGS)

soak: env tools ## Serve mixed traffic with faults and swaps for an hour and check every answer; ARGS="--minutes N"
	@$(bin)/python -m dev.soak $(ARGS)

test-kserve: env ## Test KServe's own SDK against the server, in an environment of its own (300 MB under .tools)
	@$(bin)/python -m dev.harness.foreign_client kserve
	@$(bin)/pytest tests/clients/kserve $(ARGS)

tools-ghz: ## Build ghz for the conformance table (needs Go)
	@dev/scripts/tools-ghz

conformance: env tools tools-ghz ## Run the table of clients/conformance with all clients, grpcurl and ghz (needs Go and Java; ARGS="--language python")
	@$(bin)/python -m dev.conformance --write $(ARGS)

backfill: env ## Run the examples for Ray and Spark against two servers, one of which is restarted (needs Java; 1 GB under .bench)
	@$(bin)/python -m dev.conformance.backfill $(ARGS)

bench-callers: env ## Count what swaps, failing trials, kills and restarts cost the callers of each client (ARGS="--language python")
	@$(bin)/python -m dev.conformance.swaps --write $(ARGS)

bench-swap: env ## Measure gaps that callers see during swaps and crashes, on the demo model
	@$(bin)/python -m dev.bench.swap $(ARGS)

bench-restart: env ## Measure how long the server is away when it is killed or restarted, with the demo model
	@$(bin)/python -m dev.bench.restart $(ARGS)

bench-update: env ## Measure each step of an update against this machine's limits (needs 8 GB; ARGS="--size middle": 0.6)
	@$(bin)/python -m dev.bench.update $(ARGS)

parity: env ## Compare the engines with the stock pipeline, in a separate environment (about 6 GB)
	@dev/scripts/parity-env
	.venv-parity/bin/python -m dev.parity.fixtures --check
	.venv-parity/bin/python -m dev.parity.texts --check
	.venv-parity/bin/python -m dev.parity.compare_folders --write
	.venv-parity/bin/python -m dev.parity.compare --folder examples/shapes/v1.0.0 $(ARGS)
	.venv-parity/bin/python -m dev.parity.mgeo.fixtures --check
	.venv-parity/bin/python -m dev.parity.mgeo.compare

fuzz: env ## Look for inputs that break the server: a million in the process, 50,000 messages over the wire (about an hour)
	@dev/scripts/fuzz-tools
	@$(bin)/python -m tests.fuzz $(ARGS)

gpu: env ## Test and measure on a real GPU, out of memory included (skipped without a CUDA device)
	@$(bin)/pytest -m gpu -rs tests/gpu
	@$(bin)/python -m dev.bench.card $(ARGS)

chaos: env ## Run the slow fault-injection steps on real processes; ARGS=--list lists them
	@$(bin)/python -m dev.chaos $(ARGS)

.PHONY: docs
docs: env ## Build the site of the documentation into .bench/site, strictly
	@dev/scripts/docs-env
	@env NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build && echo "hotslot: the site is in .bench/site; open .bench/site/index.html"

.PHONY: test-docs
test-docs: env tools ## Run the commands of all pages against the demo (five minutes); ARGS="tutorial" chooses pages
	@$(bin)/python -m dev.documents $(ARGS)

.PHONY: recording
recording: env tools ## Record a terminal session and a swap of the demo, and draw both for the documents (two minutes)
	@$(bin)/python -m dev.documents.record

.PHONY: console-pictures
console-pictures: env ## Photograph the demo's console in a real Chromium for the documents (three minutes)
	@dev/scripts/tools-console
	@env PYTHONPATH=.tools/console $(bin)/python -m dev.documents.console_pictures

.PHONY: test-console
test-console: env ## Drive a real Chromium through every page of the console, with axe and screenshots (four minutes)
	@dev/scripts/tools-console
	@env PYTHONPATH=.tools/console $(bin)/pytest -q -p no:cacheprovider --override-ini=timeout=300 tests/browser $(ARGS)

.PHONY: tools-watch test-watch drill bench-traces bench-peers bench-served
tools-watch: ## Install Prometheus and Alertmanager (Debian's packages, as root)
	@dev/scripts/tools-watch

test-watch: env tools-watch ## Test alerts, deliveries, dashboard and traces with the real Prometheus and Alertmanager (five minutes)
	promtool check config deploy/prometheus/prometheus.yml
	cd deploy/prometheus && promtool test rules hotslot.test.yml
	@$(bin)/python -m dev.watch.delivery
	@dev/scripts/check-dashboard
	@$(bin)/python -m dev.watch.dashboard
	@env PYTHONPATH=.tools/otel $(bin)/python -m dev.watch.spans

drill: env tools-watch ## Provoke the fault of every alert on the real stack; Prometheus must see it, and a chat must be told (about 20 minutes)
	@$(bin)/python -m dev.watch.drill $(ARGS)

.PHONY: tools-deploy test-deploy image test-image load-report
tools-deploy: env ## Install proxies, validators and image tools (Debian's packages, as root)
	@dev/scripts/tools-deploy

test-deploy: env tools tools-deploy ## Run the shipped proxy files, manifests and unit for real; ARGS="proxies kubernetes systemd ci"
	@env GRPC_VERBOSITY=NONE $(bin)/python -m dev.production $(ARGS)

test-image: env ## Run the image read-only, without capabilities, as any user: update, limits, drain, exit code
	@$(bin)/python -m dev.production.image

load-report: env ## Serve 100 clients for five minutes with an update and a kill; docs/load-report.html (ARGS="--seconds 60")
	@env GRPC_VERBOSITY=NONE $(bin)/python -m dev.production.load_report $(ARGS)

image: env dist tools-deploy ## Build the image without a registry, the demo model baked in (20 GB free)
	@dev/scripts/image $(ARGS)

env: ## Create .venv if it is not up to date
	@dev/scripts/bootstrap

clean: ## Remove everything that make creates
	rm -rf clients/java/target .bench .venv .venv-parity .venv-peers .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
