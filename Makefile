# Both commands work from a fresh clone with Python, a C++ compiler and make: they set up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The torch to install where none is chosen; TORCH="torch==2.13.0" pins one, see README.
TORCH ?= torch==2.13.0
# Stamps are named after it, so that another one is installed and built for.
NAME := $(subst <,-,$(subst >,-,$(subst =,-,$(TORCH))))
TOOLS := $(VENV)/tools-$(NAME)
BUILT := $(VENV)/built-$(NAME)
# Operators with kernels for the CPU, and with CUDA kernels: csrc/NAME has its tests in tests/NAME.
tests_of = $(patsubst csrc/%/,tests/%,$(sort $(dir $(wildcard csrc/*/$(1)))))
CPU_TESTS := $(call tests_of,*_cpu.cpp) tests/test_graph.py
CUDA_TESTS := $(call tests_of,*_cuda.cu) tests/test_graph.py
EMULATED_TESTS := $(CUDA_TESTS) $(addprefix tests/,edges interop md models nn \
	cuda_emulation/test_kernels.py)
# Tests run on one thread each, so that every core takes some; PYTEST_FLAGS=-n0 runs one by one.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
# SHUFFLE=7 runs the suites in the random order of that seed.
ORDER = $(if $(SHUFFLE),--shuffle $(SHUFFLE))

.PHONY: demo test fuzz lint sanitize bench gpu clean

demo: $(BUILT)
	$(BIN)/molkern demo

# The suite, the benchmarks as small checks, then operators and models on the CUDA kernels as the
# host emulates them.
test: $(BUILT)
	$(BIN)/python -m pytest -q $(PARALLEL) $(ORDER) $(PYTEST_FLAGS)
	$(BIN)/python -m pytest -q benchmarks $(PARALLEL) $(PYTEST_FLAGS)
	MOLKERN_EMULATE_CUDA=1 $(BIN)/python setup.py -q build --build-lib build/emulated
	PYTHONPATH=build/emulated $(BIN)/pytest -q $(EMULATED_TESTS) -m "not unemulated" \
		--every-kernel $(PARALLEL) $(ORDER) $(PYTEST_FLAGS)

# Property tests with new random examples, until one fails or the time is over.
FUZZ_SECONDS ?= 300
fuzz: $(BUILT)
	$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS) $(FUZZ_FLAGS)

lint: $(BUILT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The CPU's kernels and the emulated ones under AddressSanitizer and UndefinedBehaviorSanitizer.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr -O1 -g1
RUNTIMES = $(foreach name,asan ubsan,$(shell $(CXX) -print-file-name=lib$(name).so))
# Long ones, whose kernels the others run too.
UNSANITIZED := test_third_derivatives or 200000 or instruction_set or opcheck or compile or autocast \
	or far_atoms or too_many_edges
# One build has both, and of the instruction sets the one that the tests run.
ISA = import molkern; print(molkern.build_info()["cpu_instruction_set_in_use"])
SANITIZED = LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 \
	PYTHONPATH=build/sanitized $(BIN)/pytest -q -k "not ($(UNSANITIZED))" $(PARALLEL)
sanitize: $(BUILT)
	MOLKERN_CXXFLAGS="$(SANITIZERS)" MOLKERN_EMULATE_CUDA=1 \
		MOLKERN_ISAS="$$($(BIN)/python -c '$(ISA)')" \
		$(BIN)/python setup.py -q build --build-lib build/sanitized
	MOLKERN_EMULATE_CUDA=0 $(SANITIZED) $(CPU_TESTS) $(PYTEST_FLAGS)
	MOLKERN_EMULATE_CUDA=1 $(SANITIZED) $(CUDA_TESTS) $(PYTEST_FLAGS)

# Peers: the suites leave out those that do not install. torch_cluster takes minutes to build.
# SchNetPack pins a sympy that torch does not take, and TorchMD-NET brings what only its training
# needs: so without dependencies, but for those that they import.
PEERS := vesin matscipy nvalchemi-toolkit-ops
SCHNETPACK := dirsync fasteners torch-ema omegaconf pytorch-lightning h5py
# make bench BENCH_FLAGS="-k neighbors" runs some, whose report is in build/results.
REPORT = $(if $(BENCH_FLAGS),build/results,benchmarks/results)
bench: $(BUILT)
	$(BIN)/pip install -q $(PEERS)
	-$(BIN)/pip install -q --no-build-isolation torch_cluster
	-$(BIN)/pip install -q --no-deps torchmd-net schnetpack
	-$(BIN)/pip install -q $(SCHNETPACK)
	mkdir -p build
	$(BIN)/python -m pytest benchmarks -q -n0 --benchmark-enable --benchmark-columns=median,iqr,rounds \
		--benchmark-json=build/benchmarks.json $(BENCH_FLAGS); status=$$?; \
		$(BIN)/python benchmarks/report.py build/benchmarks.json --out $(REPORT) && exit $$status

$(TOOLS): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q "setuptools>=77" wheel pybind11 ninja numpy
	rm -f $(VENV)/tools-* $(VENV)/built-*
	touch "$@"

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
$(BUILT): $(TOOLS) setup.py $(SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/pip install -q --no-build-isolation -e ".[test,lint,demo]"
	touch "$@"

# On a machine with an NVIDIA GPU, with the Python that is there: proofs, then figures.
gpu:
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info molkern/_C*.so
