# Everything that is done by hand or by CI has its target here; `make` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

STACK := deploy/local/stack

# How large the tests are; the tests say what they make of it. `make test TEST_SCALE=..` passes it through.
ifdef TEST_SCALE
export TEST_SCALE
endif

.PHONY: help setup build demo demo-down test test-unit model sim torture torture-mutants fuzz lint bench \
	bench-parts bench-export stack-up stack-down clean-stack

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing (as root, by apt), or name it in one line
	@$(STACK) install
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust with rustup; rust-toolchain.toml names the version" >&2; exit 1; }

build: ## Build the release binary
	cargo build --release --locked

demo: ## Kafka to PostgreSQL on this machine: 50,000 events, and the account of them
	@deploy/local/demo

demo-down: ## Stop what the demo started and remove its state
	@deploy/local/demo down

test: setup ## Run every test on a real Kafka and a real PostgreSQL
	@$(STACK) install tests
	$(STACK) up
	settings=$$($(STACK) env); eval "$$settings"; status=0; \
	cargo test --profile ci --all-features --locked || status=$$?; \
	STACK_DIR="$$STACK_DIR-private" $(STACK) down; exit $$status

test-unit: ## Run the tests that need neither Kafka nor PostgreSQL
	cargo test --profile ci --all-features --locked --lib

model: ## Explore the protocol's model with its large bounds, some minutes; writes target/reports/model.json
	TEST_SCALE=full cargo test --profile ci --all-features --locked --test model -- --nocapture --test-threads 2

sim: ## The program over a simulated Kafka, PostgreSQL and disk: N=100000 seeds, or SEED=n with all that happens in it
	SEED="$(SEED)" N="$(N)" FIRST="$(FIRST)" cargo test --profile ci --all-features --locked --test simulation seeds_hold -- \
		--nocapture

torture: MINUTES := 2
torture: setup ## Everything fails at once for MINUTES, and the account must hold: SEED=n, FAULTS=all, short or names
	cargo test --profile ci --all-features --locked --test torture -- run --minutes "$(MINUTES)" --seed "$(SEED)" \
		--faults "$(FAULTS)" --records-per-second "$(RECORDS_PER_SECOND)"

torture-mutants: setup ## Take out what keeps the promise, one at a time: the torture rig must turn red
	cargo test --profile ci --all-features --locked --test torture -- mutants

fuzz: MINUTES := 15
fuzz: ## Fuzz what reads bytes of others, MINUTES each: TARGET=name, JOBS=n side by side; writes target/reports/fuzz.json
	@MINUTES="$(MINUTES)" deploy/local/fuzz $(TARGET)

lint: ## Check format, lints (warnings denied), scripts and all that is in deploy/
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --profile ci --all-targets --all-features --locked -- -D warnings
	@if command -v shellcheck >/dev/null; then \
		shellcheck -x .ci/run $$(grep -lsE '^#!.*\b(ba)?sh\b' deploy/compose/* deploy/helm/* deploy/image/* \
			deploy/local/* deploy/prometheus/* examples/* tests/torture/*); \
	else \
		echo "shellcheck is not installed: scripts were not checked" >&2; \
	fi
	@if command -v promtool >/dev/null; then \
		deploy/prometheus/check && deploy/compose/check; \
	else \
		echo "promtool is not installed: deploy/prometheus and deploy/compose were not checked" >&2; \
	fi
	@deploy/helm/check
	@deploy/image/check
	@$$(deploy/local/tools check-jsonschema) --builtin-schema vendor.github-workflows .github/workflows/*.yml

bench: setup ## Compare with psql's \copy on this machine (hours; ARGS="--rounds 1 backlog" for less); writes target/reports/bench.json
	cargo build --release --locked --bin audit-consumer
	cargo bench --locked --bench e2e --no-run
	$(STACK) up
	settings=$$($(STACK) env); eval "$$settings"; cargo bench --locked --bench e2e -- $(ARGS)

bench-parts: ## What decoding, encoding and the spool cost by themselves, without servers
	cargo bench --locked --bench parts

bench-export: setup ## Compare export with psql's \copy; writes target/reports/export.json
	@deploy/local/bench-export

stack-up: setup ## Start Kafka and PostgreSQL
	@$(STACK) up

stack-down: ## Stop them; their data stays
	@$(STACK) down

clean-stack: ## Stop every local stack and remove its data
	@for dir in target/stack target/stack-*; do \
		[ -d "$$dir" ] || continue; \
		STACK_DIR="$$dir" $(STACK) down; \
		rm -rf "$$dir"; \
	done
