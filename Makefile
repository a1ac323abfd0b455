# Every target does its own set-up; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup build run test check bench fuzz asan tsan aarch64 amx tilemodel peers peers-model onnx-cases papers format clean install

ATTEND := build/release/attend
TEXT ?= /usr/share/common-licenses/GPL-3
POLICIES ?= softmax; q8_0; softmax:window=1024,sinks=4; softmax:window=1024; snapkv:budget=1024; h2o:budget=1024; quest:budget=1024

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install the Debian packages that are missing (needs root, once)
	@scripts/setup.sh

build: setup  ## build the attend command: build/release/attend
	@scripts/build.sh release

run: build  ## compare attention policies on a real model over a real text; writes build/compare.html
	@$(ATTEND) compare -m smollm2-135m -f $(TEXT) --policies "$(POLICIES)" --html build/compare.html

test: setup  ## build everything and run all tests: units, golden data, install, fuzzers under ASan and UBSan
	@scripts/test.sh

check: build  ## conformance of every mechanism on this machine
	@$(ATTEND) check

bench: build  ## kernels against this machine's limits
	@$(ATTEND) bench

fuzz: setup  ## fuzz every parser for a minute (SECONDS_EACH=60)
	@scripts/fuzz.sh $(or $(SECONDS_EACH),60)

asan: setup  ## all tests under ASan and UBSan
	@scripts/build.sh asan && ctest --test-dir build/asan -j 2 --output-on-failure

tsan: setup  ## kernels and parsers under TSan
	@scripts/tsan.sh

aarch64: setup  ## cross-build for AArch64 and check it under qemu
	@scripts/aarch64.sh

amx: build  ## check kernels for AMX on a processor that Bochs emulates (minutes)
	@scripts/amx.sh

tilemodel: setup  ## check kernels for AMX with tiles in software
	@scripts/tilemodel.sh

peers: build  ## measure PyTorch, ONNX Runtime, OpenVINO and ggml beside attend, write docs/performance.md (PEERS="--row decode")
	@scripts/peers.py $(PEERS)

peers-model: build  ## build llama.cpp from its package, compare with it, write docs/performance.md
	@scripts/peers_model.py $(PEERS)

onnx-cases: build  ## run the ONNX reference's attention cases through attend apply
	@scripts/onnx_cases.sh

papers: build  ## write docs/papers.md from the registry
	@scripts/papers.py

format: setup  ## clang-format all sources
	@git ls-files '*.h' '*.cpp' | xargs clang-format -i

install: build  ## install under PREFIX (default /usr/local)
	@cmake --install build/release --prefix $(or $(PREFIX),/usr/local)

clean:  ## remove all that was built (models stay in the user's cache)
	@rm -rf build
