"""A hub on loopback with a text tower's config and a small tokenizer, in the hub's layout.

For architectures whose text tower is Hugging Face's: what they ask for by name is served
from a folder, so that a measurement with random weights needs no network.
"""

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer

from benchmarks.captions import Writer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
XLM_ROBERTA = "xlm-roberta-base"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SENTENCES = 2000
PIECES = 1000


@contextmanager
def loopback_hub(folder: Path) -> Iterator[dict[str, str]]:
    """Serves `<folder>/<repo>/<file>`; yields the variables that make processes use it."""
    handler = functools.partial(_Handler, folder / "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
    thread.start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_xlm_roberta(folder: Path) -> None:
    """XLM-RoBERTa base: its config at full size, and a tokenizer of a thousand pieces."""
    repository = folder / "hub" / XLM_ROBERTA
    repository.mkdir(parents=True)
    config = {
        "architectures": ["XLMRobertaForMaskedLM"],
        "model_type": "xlm-roberta",
        "vocab_size": 250_002,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    described = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "model_max_length": 512,
    }
    (repository / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (repository / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    _tokenizer().save(str(repository / "tokenizer.json"))


def _tokenizer() -> Tokenizer:
    writer = Writer(seed=1)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=PIECES,
        special_tokens=list(SPECIAL[:4]),
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator((writer.short() for _ in range(SENTENCES)), trainer)
    tokenizer.add_special_tokens([SPECIAL[4]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, *request: object) -> None:
        self._root = root
        super().__init__(*request)  # type: ignore[arg-type]  # socketserver's own arguments

    def do_GET(self) -> None:  # http.server's name
        self._answer(send_body=True)

    def do_HEAD(self) -> None:  # http.server's name
        self._answer(send_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Silent."""

    def _answer(self, *, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        repository, resolved, rest = path.partition("/resolve/")
        if not resolved:
            repository = path.removeprefix("api/models/").partition("/")[0]
        folder = self._root / repository
        file = folder / rest.partition("/")[2]
        if not repository or not folder.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("api/models/"):
            names = sorted(one.name for one in folder.iterdir())
            entries: object = [
                {"type": "file", "path": name, "size": 0, "oid": COMMIT} for name in names
            ]
            if "/tree/" not in path:
                siblings = [{"rfilename": name} for name in names]
                entries = {"id": repository, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(entries).encode(), {}, send_body=send_body)
        elif not resolved or not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"ETag": tag, "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, send_body=send_body)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], *, send_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if send_body:
            self.wfile.write(content)
