# SPDX-License-Identifier: LGPL-2.1-or-later
# A thin face on meson and the scripts in tools/; `make help` lists what there is.

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
V ?= 0
# Extra arguments for the script behind demo, test, bench, fuzz and soak.
ARGS ?=

NINJA_FLAGS := $(if $(filter 1,$(V)),--verbose,--quiet)

.PHONY: all demo test bench fuzz soak format install clean help deps-build deps-test deps-demo

all: deps-build
	@tools/configure $(BUILD) --prefix=$(PREFIX)
	@ninja -C $(BUILD) $(NINJA_FLAGS)

# Each of these installs Debian packages that are missing when run as root.
deps-build deps-test deps-demo: deps-%:
	@tools/install-deps --for $*

demo: deps-demo all
	@$(BUILD)/src/bin/blockstep demo $(ARGS)

test: deps-test
	@tools/run-tests $(ARGS)

bench: deps-test
	@tools/configure build-release --buildtype=release -Dtests=disabled
	@ninja -C build-release $(NINJA_FLAGS)
	@bench/run --build build-release $(ARGS)

fuzz: deps-test
	@tools/run-fuzzers $(ARGS)

soak: deps-test all
	@tools/soak --build $(BUILD) $(ARGS)

format:
	@tools/format $(ARGS)

install: all
	@meson configure $(BUILD) -Dprefix=$(PREFIX) >/dev/null
	@ninja -C $(BUILD) $(NINJA_FLAGS) >/dev/null
	@DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

clean:
	@rm -rf $(BUILD) build-*

help:
	@echo 'make            configure and build in $(BUILD)/'
	@echo 'make demo       a real disk replicated, checkpointed, failed over'
	@echo 'make test       what a change must pass before it is committed (minutes)'
	@echo 'make bench      speed, side by side with QEMU and nbdkit'
	@echo 'make fuzz       each fuzzer for a minute (ARGS=--seconds=N for longer)'
	@echo 'make soak       fresh seeds for hours: simulator, demo, real pairs (ARGS=--minutes=N)'
	@echo 'make format     lay the C files out (ARGS="FILE...": only these)'
	@echo 'make install    to PREFIX ($(PREFIX)), below DESTDIR when that is set'
	@echo 'make clean      remove build/ and build-*/'
	@echo
	@echo 'V=1 shows the commands. ARGS="..." goes to the script behind a target.'
