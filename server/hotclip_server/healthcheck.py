"""Ask a running server for its health: exit code 0 when it serves, 1 when it does not.

python -m hotclip_server.healthcheck 127.0.0.1:50051
"""

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def check(address: str, timeout: float) -> str:
    """The serving status of the server at `address`, or the code of the failure, by name."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hotclip_server.healthcheck", description=__doc__
    )
    parser.add_argument("address", nargs="?", default="127.0.0.1:50051", help="host:port")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default 3)")
    options = parser.parse_args(arguments)
    status = check(options.address, options.timeout)
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
