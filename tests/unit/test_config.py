"""Flags, environment, file and help all come from ServerConfig."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hotclip_server.config import ConfigError, ServerConfig
from hotclip_server.settings import field_docs, make_parser, read_config

NAMES = [setting.name for setting in fields(ServerConfig)]


def problems(arguments=(), environment=None) -> dict[str, str]:
    with pytest.raises(ConfigError) as error:
        read_config(arguments, environment or {})
    return error.value.problems


def test_defaults():
    assert read_config([], {}) == ServerConfig()
    assert read_config([], {"HOTCLIP_SERVER": "the client's"}) == ServerConfig()


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path):
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nthreads = 1\nlog_level = "debug"\n')
    environment = {"HOTCLIP_PORT": "2", "HOTCLIP_THREADS": "2", "PORT": "9"}
    config = read_config(["--config", str(file), "--port", "3"], environment)
    assert (config.port, config.threads, config.log_level) == (3, 2, "debug")
    assert config.max_batch == 0
    assert read_config([], {"HOTCLIP_CONFIG": str(file)}).port == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("64KiB", 65536), ("16 MiB", 16 << 20), ("1_048_576", 1 << 20), ("2gib", 2 << 30)],
)
def test_sizes(text: str, value: int):
    assert read_config(["--max-dataset-bytes", text], {}).max_dataset_bytes == value


def test_booleans_paths_and_floats():
    config = read_config(
        ["--insecure", "--models-dir", "a/b", "--shutdown-grace-s", "1.5"],
        {"HOTCLIP_ALLOW_RANDOM_WEIGHTS": "yes"},
    )
    assert config.insecure
    assert config.allow_random_weights
    assert config.models_path == Path("a/b")
    assert config.shutdown_grace_s == 1.5
    assert not read_config(["--insecure", "false"], {}).insecure


def test_every_bad_field_is_named_with_its_reason(tmp_path: Path):
    file = tmp_path / "server.toml"
    file.write_text("no_such = 1\nwatchdog_s = true\n")
    found = problems(
        ["--config", str(file), "--port", "70000", "--device", "tpu"],
        {"HOTCLIP_THREADS": "many", "HOTCLIP_PRECISION": "int4"},
    )
    assert set(found) == {"no_such", "watchdog_s", "port", "device", "threads", "precision"}
    assert "70000" in found["port"]
    assert "environment" in found["threads"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shutdown_grace_s", "inf"),
        ("watchdog_s", "nan"),
        ("max_message_bytes", "2GiB"),
        ("max_items_per_request", str(1 << 32)),
        ("max_concurrent_streams", str(1 << 31)),
    ],
)
def test_numbers_that_nothing_can_hold_are_refused(name: str, value: str):
    assert list(problems([f"--{name.replace('_', '-')}", value])) == [name]


@pytest.mark.parametrize("content", [None, "port = ", "= 1"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str | None):
    file = tmp_path / "server.toml"
    if content is not None:
        file.write_text(content)
    assert "server.toml" in problems(["--config", str(file)])["config"]


def test_other_hosts_need_insecure():
    assert "--insecure" in problems(["--host", "0.0.0.0"])["host"]
    assert read_config(["--host", "0.0.0.0", "--insecure"], {}).host == "0.0.0.0"
    assert read_config(["--host", "::1"], {}).host == "::1"


def test_every_field_has_a_docstring_and_an_option():
    docs = field_docs()
    assert set(docs) == set(NAMES)
    options = {option for action in make_parser()._actions for option in action.option_strings}
    assert {f"--{name.replace('_', '-')}" for name in NAMES} <= options


def test_help_documents_every_field_without_torch():
    code = (
        "import sys\nsys.argv = ['hotclip-server', '--help']\n"
        "from hotclip_server.__main__ import main\n"
        "try:\n    main()\nfinally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    shown = " ".join(run.stdout.split())
    for name in NAMES:
        assert f"--{name.replace('_', '-')}" in shown
    words = " ".join(field_docs()["watchdog_s"].split()[:6])
    assert words in shown


def test_bad_settings_end_with_2():
    run = subprocess.run(
        [sys.executable, "-m", "hotclip_server", "--port", "x", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert "port: must be a whole number" in run.stderr
    assert "host: 0.0.0.0" in run.stderr
