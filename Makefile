# The commands of the project. Each does its own set-up; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-gpu extras asan tsan fuzz soak clean

SECONDS ?= 600
SEED ?= 0
REQUESTS ?= 5000
PYTHON ?= python3
RESULTS ?= build/attention_gpu.md
CONFIGURE ?=  # more arguments for CMake

# Tests run side by side; threads that wait give their core away (testPresets).
run_tests = ctest --preset $(1) --parallel $$(nproc)
configure_and_build = cmake --preset $(1) $(CONFIGURE) && cmake --build --preset $(1)

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build the program and watch a run in which generator and trainer agree to the last bit
	scripts/setup.sh build
	$(call configure_and_build,release) --target chorale_app
	build/release/chorale train examples/sum_digits/grpo.yaml

test: ## build everything and run all tests
	scripts/setup.sh build
	$(call configure_and_build,release)
	$(call run_tests,release)

check: ## before a commit: format, build, lint (of what changed), fast tests
	scripts/setup.sh build check
	scripts/check_format.sh
	$(call configure_and_build,release)
	scripts/lint.sh
	$(call run_tests,fast)

format: ## rewrite the sources in the project's format
	scripts/setup.sh check
	scripts/check_format.sh --fix

bench: ## build and run the benchmarks
	scripts/setup.sh build
	$(call configure_and_build,release) --target chorale_bench model_cpu
	scripts/bench.sh

bench-gpu: ## race attention on a GPU against its peers, with a PYTHON that has PyTorch for CUDA, into RESULTS=FILE.md
	scripts/setup.sh build
	$(call configure_and_build,release) --target chorale_bench
	$(PYTHON) bench/attention_gpu.py build/release/bench/libchorale_bench.so --output $(RESULTS)

extras: ## the Python peers (PyTorch, Transformers) that optional tests and benchmarks compare with
	scripts/extras.sh

asan: ## all tests under AddressSanitizer and UndefinedBehaviorSanitizer
	scripts/setup.sh build
	$(call configure_and_build,asan)
	$(call run_tests,asan)

tsan: ## all tests under ThreadSanitizer
	scripts/setup.sh build
	$(call configure_and_build,tsan)
	$(call run_tests,tsan)

fuzz: ## search for inputs that break a promise, SECONDS=600 for each target; SEED=1: as the last time with 1
	scripts/setup.sh build fuzz
	$(call configure_and_build,fuzz)
	SEED=$(SEED) scripts/fuzz.sh $(SECONDS)

soak: ## a long rollout under pressure, REQUESTS=5000 for each setting, each compared with itself alone
	scripts/setup.sh build
	$(call configure_and_build,release) --target soak
	build/release/tests/rollout/soak --requests $(REQUESTS)

clean: ## remove what was built
	rm -rf build
