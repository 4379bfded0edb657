"""The hub that `huggingface_hub` is configured with, and the errors it stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is imported there
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hotclip_server.encoding.architecture import HF_CONFIG_FILE
from hotclip_server.errors import FailedPrecondition, HotclipError, NotFound, Unavailable

_NO_ANSWER = (LocalEntryNotFoundError, OfflineModeIsEnabled)
_NOT_THERE = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)


@contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Turns what the hub's client raises, itself or through `transformers`, into ours."""
    try:
        yield
    except HotclipError:
        raise
    except (OSError, ValueError, RuntimeError, EntryNotFoundError, HTTPError) as error:
        raise _translated(error, source) from error


def write_hf_config(model: str, local: Path | None, folder: Path) -> None:
    """Writes the text tower's `config.json` into `folder`.

    Args:
        model: Hub id.
        local: Folder that has it already; None asks the hub.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(local or model), trust_remote_code=False)
    content = config.to_dict()
    # Of this installation and of where it was read from, not of the model.
    for name in ("transformers_version", "_name_or_path"):
        content.pop(name, None)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / HF_CONFIG_FILE).write_text(text, "utf-8")


def _translated(error: BaseException, source: str) -> HotclipError:
    chain = list(_causes(error))
    # Order matters: a file missing here because the hub is silent is both kinds.
    if any(isinstance(link, _NO_ANSWER) for link in chain):
        return Unavailable(f"{source}: the hub does not answer", retry_after_s=30.0)
    if any(isinstance(link, _NOT_THERE) for link in chain):
        return NotFound(f"{source}: the hub has no such repository or file")
    if any(isinstance(link, (HfHubHTTPError, HTTPError)) for link in chain):
        return Unavailable(f"{source}: the hub answered with an error", retry_after_s=30.0)
    return FailedPrecondition(f"{source} cannot be read: {error}", reason="VERSION_UNFIT")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
