.DEFAULT_GOAL := help
GO ?= go

.PHONY: help build sbom test lint race fuzz bench demo chaos conformance ci clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/bridge
	$(GO) build -trimpath -buildvcs=false -o bin/bridge ./cmd/bridge

sbom: build ## write bin/bridge.cdx.json, what bin/bridge is made of (CycloneDX)
	$(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -output bin/bridge.cdx.json bin/bridge

test: ## run all tests
	$(GO) test ./...

lint: ## check format, vet, linters and the direction of imports
	.ci/run format vet lint

race: ## run all tests under the race detector
	.ci/run race

fuzz: ## run each fuzz target for FUZZTIME (20s)
	.ci/run fuzz

bench: build ## benchmark the packages, then the whole beside a hand-written loop, with charts in docs/img
	$(GO) test -run '^$$' -bench . -benchmem ./...
	bin/bridge bench --baseline --plot docs/img

demo: ## see it work: NATS, upstream, bridges and watchers in one process
	$(GO) run ./cmd/bridge demo

chaos: ## kill, stop and cut off real processes, and print what became of the promises; SOAK=1h adds random faults in virtual time
	$(if $(SOAK),$(GO) test ./cmd/bridge -run '^TestAnHourOfMisfortune$$' -count=1 -timeout 0 -soak $(SOAK))
	cd internal/chaos && $(GO) test -run '^TestChaos$$' -count=1 -timeout 30m -chaos.full $(CHAOS)

conformance: ## check against programs of others: official SDK, hatchery-core, nats-py, nats CLI
	conformance/run.sh

ci: ## everything that a change has to pass
	.ci/run

clean: ## remove what builds and checks leave here
	rm -rf bin dist .venv-conformance
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
