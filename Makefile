# The commands that the README and CONTRIBUTING speak of. "make" alone lists them.

.DEFAULT_GOAL := help
.PHONY: help build check test short cover demo fuzz bench image clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

build: ## build ./pgproxy
	CGO_ENABLED=1 go build -trimpath -o pgproxy .

check: ## format, vet and staticcheck: what CI runs besides the tests
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted, see gofmt -d:" $$unformatted >&2; exit 1; }
	go vet ./...
	go tool staticcheck ./...

test: ## run all tests, against every PostgreSQL that can be had
	.ci/postgres
	.ci/versions
	.ci/clients
	go test -race -timeout 40m ./...

short: ## run the quick tests, with what the machine has
	go test -short ./...

COVER ?= pgproxy.cover

cover: ## run all tests and tell which statements they reach; COVER is the profile
	.ci/postgres
	go test -timeout 20m -coverpkg=./... -coverprofile=$(COVER) ./...
	go tool cover -func=$(COVER) | tail -n 1
	@echo "go tool cover -html=$(COVER) shows where"

demo: ## a tailnet, a database and the proxy on this machine, and psql
	.ci/postgres
	@.ci/demo

FUZZTIME ?= 30s

fuzz: ## run each fuzz target for FUZZTIME (30s)
	.ci/fuzz $(FUZZTIME)

bench: ## measure against direct PostgreSQL, a bare relay and pgbouncer
	.ci/postgres
	go run ./wire/bench

image: ## build the container image pgproxy:latest
	docker build -t pgproxy .

clean: ## remove what was built (downloads stay in the cache)
	rm -f pgproxy $(COVER)
