# Weft. `make help` lists what there is.
#
# Downloads and built tools go to $(WEFT_CACHE), outside the tree.

SHELL := /bin/bash
.DEFAULT_GOAL := help

WEFT_CACHE ?= $(HOME)/.cache/weft
export WEFT_CACHE

# Tools, pinned. Each version has its own folder, so changing one rebuilds it.
BUF_VERSION             := v1.75.0
PROTOC_GEN_GO_VERSION   := v1.36.12
PROTOC_GEN_GRPC_VERSION := v1.6.2
GOLANGCI_VERSION        := v2.6.0
GOVULNCHECK_VERSION     := v1.1.4

TOOLS    := $(WEFT_CACHE)/bin
BUF      := $(TOOLS)/buf-$(BUF_VERSION)/buf
GENGO    := $(TOOLS)/protoc-gen-go-$(PROTOC_GEN_GO_VERSION)/protoc-gen-go
GENGRPC  := $(TOOLS)/protoc-gen-go-grpc-$(PROTOC_GEN_GRPC_VERSION)/protoc-gen-go-grpc
GOLANGCI := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TAGS    := grpcnotrace
LDFLAGS := -s -w -X github.com/weft-mesh/weft/pkg/version.version=$(VERSION)
BUILD   := CGO_ENABLED=0 go build -trimpath -tags $(TAGS) -ldflags "$(LDFLAGS)"

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | expand -t 16

.PHONY: build
build: ## Build bin/weft and bin/weft-proxy
	@mkdir -p bin
	$(BUILD) -o bin/weft ./tools/cmd/weft
	$(BUILD) -o bin/weft-proxy ./tools/cmd/weft-proxy

.PHONY: run
run: build ## Start the whole mesh in one process, with its data in ./data
	@./bin/weft up --data ./data

.PHONY: servers
servers: ## Start real RocketMQ, Kafka, etcd and Nacos on loopback; addresses in bin/servers.env
	@mkdir -p bin
	go run ./tools/cmd/testservers -rocketmq -kafka -etcd -nacos -env bin/servers.env

# --- tests ---------------------------------------------------------------

# Packages with real servers take turns (servers.Main); the time-out counts the wait. Three
# at a time: one that has its turn, one that waits for it, and one without servers.
TESTFLAGS ?= -race -timeout 60m -p 3

.PHONY: test
test: deps ## All tests, with real servers, under the race detector
	go run ./tools/cmd/testservers -rocketmq -kafka -etcd -nacos -- go test $(TESTFLAGS) ./...
	@$(MAKE) --no-print-directory fuzz

.PHONY: test-short
test-short: ## The tests that need no outside server
	go test -race -short -timeout 10m ./...

FUZZTIME ?= 20000x
.PHONY: fuzz
fuzz: ## Run every fuzz target FUZZTIME (20000x) times; a time such as 10m works too
	@tools/fuzz.sh $(FUZZTIME)

.PHONY: mutants
mutants: ## Apply each patch of integration/mutants in a copy; its test must turn red
	go run ./tools/cmd/testservers -rocketmq -kafka -etcd -nacos -- go run ./tools/cmd/mutants

SOAK ?= 20
.PHONY: soak
soak: deps ## The mesh as processes under kills, the control plane under faults of SOAK (20) seeds, and 1,000 push targets
	go test -race -timeout 1h -count=$(SOAK) -run '^TestTargets$$' ./dataplane/push -targets 1000
	WEFT_TEST_SOAK=1 go run ./tools/cmd/testservers -rocketmq -kafka -etcd -nacos -- go test -race -timeout 12h -count=$(SOAK) -p 1 -parallel 1 -v ./integration/e2e ./integration/chaos
	WEFT_TEST_SOAK=1 go test -race -timeout 2h -count=$(SOAK) -run '^(TestNodes|TestConformanceNodes|TestRestarts)$$' ./store/kafka
	WEFT_TEST_SOAK=1 go test -race -timeout 8h -count=$(SOAK) -run '^TestRolling$$' ./store/rocketmq
	WEFT_TEST_SOAK=1 go test -timeout 1h -run "^TestExplore$$" ./pkg/cutover

BENCH ?= .
SLICE ?= 4s
ROUNDS ?= 3
.PHONY: bench
bench: deps ## The mesh beside what it stands on, into bench.txt (BENCH=regexp SLICE=4s ROUNDS=3 BENCHFLAGS="-share 0.5")
	go run ./integration/bench -run '$(BENCH)' -slice $(SLICE) -rounds $(ROUNDS) $(BENCHFLAGS) -out bench.txt

.PHONY: microbench
microbench: ## Benchmarks of single steps, with allocations
	go test -run '^$$' -bench . -benchmem ./dataplane/... ./store/... ./pkg/...

# --- code ----------------------------------------------------------------

.PHONY: lint
lint: $(GOLANGCI) $(BUF) ## go vet, golangci-lint, buf lint and breaking, generated code up to date
	go vet ./...
	$(GOLANGCI) run ./...
	$(BUF) lint
	@tools/breaking.sh $(BUF)
	@$(MAKE) --no-print-directory verify-generate

.PHONY: fix
fix: $(GOLANGCI) $(BUF) ## Repair what lint can repair
	$(BUF) format -w proto
	$(GOLANGCI) run --fix ./...

.PHONY: generate
generate: $(BUF) $(GENGO) $(GENGRPC) ## Generate Go and docs/resources.md from proto/
	PATH="$(dir $(GENGO)):$(dir $(GENGRPC)):$$PATH" $(BUF) generate
	@mkdir -p bin
	$(BUF) build -o bin/proto.binpb
	go run ./tools/cmd/resourcedocs < bin/proto.binpb > bin/resources.md
	mv bin/resources.md docs/resources.md

.PHONY: verify-generate
verify-generate: generate
	@test -z "$$(git status --porcelain proto/gen docs/resources.md)" || { git status --short proto/gen docs/resources.md; echo "these are not what proto/ generates: run 'make generate' and commit it"; exit 1; }

.PHONY: vuln
vuln: ## govulncheck, where its database can be reached
	go run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./...

.PHONY: deps
deps: ## Check for, or as root install, what the tests need beside Go
	@tools/deps.sh

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin bench.txt

$(BUF):
	GOBIN=$(dir $@) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
$(GENGO):
	GOBIN=$(dir $@) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
$(GENGRPC):
	GOBIN=$(dir $@) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GRPC_VERSION)
$(GOLANGCI):
	GOBIN=$(dir $@) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
