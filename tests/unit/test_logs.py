"""What the log holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from grpc._cython import cygrpc

from hotclip_server.logs import configure_logging

GRPC = "grpc._cython.cygrpc"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, of_grpc = logging.getLogger(), logging.getLogger(GRPC)
    handlers, level, filters = root.handlers[:], root.level, of_grpc.filters[:]
    yield
    root.handlers[:], of_grpc.filters[:] = handlers, filters
    root.setLevel(level)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_answers_to_calls_that_have_ended_are_no_errors(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", log_format)
    # As gRPC logs what a handler raises: by its own logger, with a traceback.
    for error in (cygrpc.ExecuteBatchError("the call has ended"), ValueError("a fault")):
        try:
            raise error
        except Exception as raised:
            logging.getLogger(GRPC).exception("%s raised", type(raised).__name__)
    logging.getLogger(GRPC).warning("something else")
    said = capsys.readouterr().err
    assert "ExecuteBatchError" not in said
    assert said.count("ValueError raised") == 1
    assert said.count("something else") == 1
