.PHONY: proto
PY ?= .venv/bin/python
PROTOS = proto/hotclip_proto/v1/*.proto

proto: ; $(PY) -m grpc_tools.protoc -Iproto --python_out=proto --grpc_python_out=proto --mypy_out=quiet,readable_stubs:proto --mypy_grpc_out=quiet:proto $(PROTOS)
