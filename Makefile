# The last line that each target prints is its summary.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# The event log of the demo: nats or embedded.
LOG ?= nats

# How many migrations under faults, and the seed of the first; each takes the next one.
RUNS ?= 4
SEED ?= 1

# The same selection of packages everywhere: with another one cargo may choose other features and build RocksDB anew.
CARGO := cargo
WHOLE := --workspace

# `always`: the tests' nats-servers sync each message, as nats-server 2.10 and newer can; which one is taken, PATH says.
export NATS_SYNC

# Rounds of a cutover and a rollback each, and how the writers are led over: pgbouncer or route.
ROUNDS ?= 20
VIA ?= pgbouncer

# One case of the bounds; all if none is named.
CASE ?=

.DEFAULT_GOAL := help
.PHONY: help setup build demo test chaos rounds soak bench bounds fmt lint

help: ## Shows this.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

setup: ## Installs what is missing on this machine (Debian; needs root or sudo only then).
	@deploy/setup

build: setup ## Builds everything.
	$(CARGO) build $(WHOLE)

demo: build ## A live migration on servers of its own; LOG=embedded does it without NATS.
	@$(CARGO) run --quiet --bin demo -- --log $(LOG)

test: build ## All tests, on real servers; NATS_SYNC=always with logs that sync each message.
	@.ci/test

chaos: build ## Migrations under faults: RUNS=n of them, of the seeds SEED=s, s+1, …
	@$(CARGO) run --quiet --bin chaos -- --runs $(RUNS) --seed $(SEED)

rounds: build ## Cutovers and rollbacks under 16 writers, seen from outside: ROUNDS=n of both, VIA=pgbouncer or VIA=route.
	@$(CARGO) run --quiet --bin rounds -- --rounds $(ROUNDS) --via $(VIA)

soak: build ## Tests that take minutes: a cluster of three nats-servers.
	@$(CARGO) test -p crossfade-log --test cluster

bench: setup ## Against Postgres's own subscription; writes benches/results/latest.json.
	$(CARGO) build $(WHOLE) --release
	@$(CARGO) run --quiet --release --bin crossfade-benches

bounds: build ## Peak memory where much comes at once; writes benches/results/bounds.json. CASE=name: one of the cases.
	@$(CARGO) run --quiet --bin crossfade-benches -- bounds $(CASE)

fmt: ## Formats the code.
	$(CARGO) fmt --all

lint: setup ## What the compiler and clippy have to say.
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(WHOLE) --all-targets -- -D warnings
