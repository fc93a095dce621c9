# The commands a person runs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what demo and tests need (Debian packages and cargo-deny); says what it installs
	@tests/setup.sh

.PHONY: demo
demo: ## Run the main job on this machine: one update that succeeds, one that is rolled back (3 minutes with compiling)
	@tests/setup.sh --demo
	@cargo build --locked --bins --example demo
	@cargo run --quiet --locked --example demo

.PHONY: test
test: setup ## Run every check: format, lints, dependencies, all tests
	@tests/run.sh

.PHONY: crash-replay
crash-replay: setup ## Replay every power cut of whole updates, at length: fifteen hundred of them given to the real daemon (half an hour)
	@CRASH_REPLAY=full cargo test --locked --test crash_replay -- --include-ignored

.PHONY: deb
deb: ## Build the Debian packages into target/debian/, for this machine or ARCH=amd64|arm64|armhf|all
	@tests/setup.sh $(if $(ARCH),--cross,--deb)
	@packaging/build-deb.sh $(ARCH)

.PHONY: package-test
package-test: ## Build the packages for all architectures and test them: lintian, piuparts, clean roots, an update each (as root, half an hour)
	@tests/setup.sh --packages
	@PACKAGE_TEST=required tests/packaging/run.sh --whole

.PHONY: rpi-test
rpi-test: ## Start an image of the Raspberry Pi image maker in QEMU's Raspberry Pi 3 and update it (as root, half an hour)
	@tests/setup.sh --rpi
	@RPI_TEST=required tests/rpi/run.sh

.PHONY: vm-test
vm-test: ## Run every scenario in a virtual machine: updates, broken versions, 30 power cuts (as root, an hour)
	@tests/setup.sh --vm
	@VM_TEST=required tests/vm/run.sh --whole
	@cargo test --quiet --locked --test tryboot --no-run
	@tests/rpi/fat-in-vm.sh

.PHONY: bench-hub
bench-hub: ## Measure the hub connection: traffic, wake-ups, memory (as root), and ten thousand devices at once (10 minutes)
	@cargo bench --locked --bench hub_cost
	@cargo bench --locked --bench hub_scale

.PHONY: bench-install
bench-install: ## Measure installations beside dd, curl, RAUC, SWUpdate, casync, zchunk, bita (as root, half an hour; options: tests/bench/install.rs)
	@tests/bench/pairs.sh
	@cargo bench --locked --bench install -- $(ARGS)

.PHONY: lint
lint: ## Format, clippy and dependency checks only
	@tests/run.sh --lint

.PHONY: clean
clean: ## Remove everything that was built
	cargo clean
