"""open_clip that was imported in part, and completed, is open_clip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = """
def names():
    return {
        module: {
            name: [type(value).__name__, getattr(value, "__module__", ""), str(getattr(
                value, "__qualname__", value if isinstance(value, str | int | bool) else ""))]
            for name, value in vars(sys.modules[module]).items()
            if not name.startswith("__")
        }
        for module in sorted(sys.modules)
        if module.partition(".")[0] == "open_clip"
    }
"""
PLAIN = f"""
import json, sys
import open_clip
{NAMES}
print(json.dumps(names()))
"""
IN_PARTS = f"""
import json, sys
from hotclip_server.encoding.open_clip_import import complete_open_clip, import_open_clip
{NAMES}
import_open_clip()
import open_clip
first = sorted({{name.partition(".")[0] for name in sys.modules}})
first += [name for name in ("torch._dynamo",) if name in sys.modules]
roi_align = sys.modules["torchvision.ops.roi_align"]
answer = roi_align.is_compile_supported("cpu")
import torch._dynamo.utils
same = answer == torch._dynamo.utils.is_compile_supported("cpu")
complete_open_clip()
complete_open_clip()
print(json.dumps([first, same, type(torch._dynamo.utils).__name__, names()]))
"""
BY_IT = """
import sys
from hotclip_server.encoding.open_clip_import import complete_open_clip, import_open_clip
import_open_clip()
complete_open_clip()
print("timm" in sys.modules, sys.modules["open_clip.tower"].timm)
"""


def output(code: str, *folders: Path) -> str:
    setup = f"import sys\nsys.path[:0] = {[str(folder) for folder in folders]!r}\n"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", setup + code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def test_what_was_put_off_comes_when_it_is_asked_for() -> None:
    first, same, kind, completed = json.loads(output(IN_PARTS))
    assert {"torch", "torchvision"} <= set(first)
    assert not set(first) & {"transformers", "timm", "sympy", "torch._dynamo"}
    assert (same, kind) == (True, "module")
    plain: dict[str, Any] = json.loads(output(PLAIN))
    assert completed == plain
    assert plain["open_clip.timm_model"]["timm"][0] == "module"


def test_all_is_imported_at_once_where_it_is_not_optional(tmp_path: Path) -> None:
    for name, source in {
        "open_clip/__init__.py": "from . import tower\n",
        "open_clip/tower.py": "import timm\n\n\nclass Tower(timm.Base):\n    pass\n",
        "timm/__init__.py": "class Base:\n    pass\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, "utf-8")
    assert output(BY_IT, tmp_path).startswith("True <module 'timm'")


def test_what_is_not_installed_stays_as_open_clip_leaves_it(tmp_path: Path) -> None:
    optional = "try:\n    import timm\n    import gone\nexcept ImportError:\n    timm = None\n"
    for name, source in {
        "open_clip/__init__.py": "from . import tower\n",
        "open_clip/tower.py": optional,
        "timm/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, "utf-8")
    assert output(BY_IT, tmp_path) == "True None"
