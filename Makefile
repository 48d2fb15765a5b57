# One command for each thing that people and CI do. "make help" lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Builds of one commit are equal on every machine: the version and the date are
# the commit's. Outside a git checkout the program falls back to what the go
# command recorded.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
DATE    := $(shell git log -1 --format=%cI 2>/dev/null)
LDFLAGS := -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

TOOLS := bin/tools
GO    := go

# Tests to run: make test PKG=./config/... RUN=TestLayers
PKG   := ./...
RUN   :=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/uac, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/uac ./cmd/uac

.PHONY: demo
demo: build ## start a cluster here, run a process, kill its active controller, watch it go on
	docs/examples/demo.sh

.PHONY: test
test: ## run all tests; installs what they need if it may, else says what it skips
	@.ci/install-packages
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -p 1 -timeout 20m $(if $(RUN),-run '$(RUN)') $(PKG)

# One seed is about ten seconds. A failed one says how to repeat it: SEED=N make faults
SEEDS := 20
.PHONY: faults
faults: ## inject SEEDS=20 seeds of random faults, crash at every point, take every rule out
	@.ci/install-packages
	UAC_FAULT_CLOCK=1 UAC_FAULT_POINTS=all UAC_FAULT_MUTANTS=$(if $(SEED),,1) SEEDS=$(SEEDS) $(if $(SEED),SEED=$(SEED)) \
	  $(GO) test -count=1 -timeout 0 -v -run '$(if $(SEED),TestFaults$$,TestFaults$$|TestCrashPoints|TestRules)' ./roles/faulttest

.PHONY: soak
soak: ## inject seeds of random faults for HOURS=2
	@.ci/install-packages
	UAC_FAULT_CLOCK=1 HOURS=$(or $(HOURS),2) $(GO) test -count=1 -timeout 0 -v -run 'TestFaults$$' ./roles/faulttest

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## check format, vet and lint
	@test -z "$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go') | tee /dev/stderr)" || { echo 'these files need gofmt' >&2; exit 1; }
	$(GO) vet ./...
	$(TOOLS)/golangci-lint run ./...

.PHONY: bench
bench: build ## measure fail-over on a cluster of its own
	bin/uac bench failover

.PHONY: generate
generate: $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## make the generated code again
	$(GO) generate ./...

.PHONY: release-build
release-build: ## build dist/uac-VERSION-linux-{amd64,arm64}, stripped, with checksums
	rm -rf dist && mkdir dist
	for arch in amd64 arm64; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -ldflags '-s -w $(LDFLAGS)' \
	    -o dist/uac-$(VERSION)-linux-$$arch ./cmd/uac || exit 1; \
	done
	.ci/check-static dist/uac-*
	cd dist && sha256sum uac-* > SHA256SUMS

# The tools are pinned in a module of their own. The first build of the linter
# takes minutes, later ones come from Go's cache; the flags are fixed so that
# every caller shares it.
$(TOOLS)/golangci-lint $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc &: .ci/tools/go.mod .ci/tools/go.sum
	mkdir -p $(TOOLS)
	cd .ci/tools && CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false' $(GO) build -o ../../$(TOOLS)/ tool
	@touch $(TOOLS)/*
