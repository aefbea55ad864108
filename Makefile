# The commands that the README speaks of. "make" alone lists them.

.DEFAULT_GOAL := help
.PHONY: help build test demo fuzz bench image clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

build: ## build ./pgproxy
	CGO_ENABLED=1 go build -trimpath -o pgproxy .

test: ## run all tests, against every PostgreSQL that can be had
	.ci/postgres
	.ci/versions
	.ci/clients
	go test -race -timeout 20m ./...

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
	rm -f pgproxy
