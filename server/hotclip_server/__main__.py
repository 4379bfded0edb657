"""`python -m hotclip_server`: parse, build, run."""

from __future__ import annotations

import gc
import os
import sys

from hotclip_server.config import ConfigError
from hotclip_server.logs import configure_logging
from hotclip_server.settings import read_config

EXIT_USAGE = 2


def main() -> int:
    """Runs a server until SIGTERM or SIGINT; a second one ends the process at once.

    Returns:
        0 after a clean stop, 1 if it can't start, 2 for bad settings.
    """
    try:
        config = read_config(sys.argv[1:], os.environ)
        configure_logging(config.log_level, config.log_format)
        # Read when grpc is imported. Its handlers are for children that go on without exec,
        # and the child of the vectors is not one.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
        # Read when torch is imported. Threads of a batch that spin for the next one starve the
        # event loop, the decoders and clients on the same cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        # A third of a million objects are imported, which stay; `run` turns it on again.
        gc.disable()
        # Heavy imports come after --help and after bad settings were refused.
        from hotclip_server.run import run

        return run(config)
    except ConfigError as error:
        for name, problem in error.problems.items():
            print(f"hotclip-server: {name}: {problem}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
