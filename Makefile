.DELETE_ON_ERROR:
.PHONY: setup test check lint types proto proto-check format demo train-mini bench gpu-check gpu-wheels image clean freeze
PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROTOS = $(wildcard proto/hotclip_proto/v1/*.proto)
PROTOC = $(BIN)/python -m grpc_tools.protoc --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc -Iproto --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet,readable_stubs:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)

setup: $(STAMP)
test: check ; $(BIN)/python -m pytest -m alone $$(grep -rlF mark.alone tests) && $(BIN)/python -m pytest -m "not alone" -n $$(( $$(nproc) < 8 ? $$(nproc) + 1 : 8 )) --dist worksteal --durations=15
check: lint types proto-check
lint: setup ; $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/hadolint Dockerfile
types: setup ; $(BIN)/mypy
format: setup ; $(BIN)/ruff check --fix && $(BIN)/ruff format && $(BIN)/buf format --write
proto: setup ; $(call PROTOC,proto)
proto-check: setup ; rm -rf build/proto && mkdir -p build/proto && $(call PROTOC,build/proto) && diff -r -x '*.proto' -x __init__.py -x __pycache__ -x py.typed build/proto/hotclip_proto proto/hotclip_proto && $(BIN)/buf lint && $(BIN)/buf format --diff --exit-code
demo: setup ; $(BIN)/python -m hotclip_examples.demo
train-mini: setup examples/hotclip_examples/mini/node_modules/.package-lock.json ; $(BIN)/python -m hotclip_examples.mini
bench: setup ; $(BIN)/python -m benchmarks $(SUITE) $(ARGS)
gpu-check: ; $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu_check $(ARGS)
gpu-wheels: setup ; $(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --python-version $(or $(FOR),3.12) $(addprefix --platform manylinux,2014_x86_64 _2_17_x86_64 _2_28_x86_64) -c constraints.txt -r benchmarks/gpu_wheels.txt -d .whl
image: ; docker build --target $(or $(TARGET),cpu) --tag hotclip:$(or $(TARGET),cpu) .
freeze: ; $(BIN)/python -m pip freeze --exclude-editable --exclude hotclip
clean: ; rm -rf .venv build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python: ; $(PYTHON) -m venv .venv
$(STAMP): pyproject.toml constraints.txt | .venv/bin/python ; $(PIP) hatchling editables && $(PIP) --no-build-isolation -e '.[dev]' && touch $@
examples/hotclip_examples/mini/node_modules/.package-lock.json: examples/hotclip_examples/mini/package.json ; npm --prefix $(<D) install --no-audit --no-fund
