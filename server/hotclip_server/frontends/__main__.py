"""`python -m hotclip_server.frontends`: a front end of a server of open_clip models.

Imports torch, whose kernels resize images exactly as the device process does.
"""

from __future__ import annotations

import gc
import os


def main() -> None:
    """Runs until the device process is gone."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    gc.disable()
    from hotclip_server.encoding.open_clip_import import import_open_clip

    import_open_clip()
    from hotclip_server.frontends import app, preparer

    gc.freeze()  # as the device process does
    gc.enable()

    app.main(preparer.load)


if __name__ == "__main__":
    main()
