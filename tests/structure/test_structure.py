from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from mediamill import plugins

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "mediamill"
GPU_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "ctranslate2", "faster_whisper")
EDGES = {
    "api/edge.py": "the request",
    "providers/child.py": "the job, where the engine runs",
    "jobs/carry.py": "the job, where it is settled",
    "jobs/worker.py": "the chores beside the jobs, which must go on",
    "jobs/ending.py": "the job, where its parts are merged",
    "jobs/webhooks.py": "one try of one webhook, shaped by a contract",
    "cli/_edge.py": "the command",
}
HANDED_ON = {f"engines/diffusers/{name}.py" for name in ("__init__", "relay", "decode", "pull")}
"""Whatever happened is raised a few lines on, translated, or in the thread that waits."""


def named_in_a_test(words: tuple[str, ...]) -> bool:
    """Whether some test file's name or text has one of these words as a module, string or file name."""
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__) and any(word in path.name or word in path.read_text() for word in words):
            return True
    return False


@pytest.mark.parametrize("kind", ["catalog", "engines", "storage", "providers", "contracts", "api.routes", "cli"])
def test_every_plugin_has_a_test_of_its_own(kind: str) -> None:
    untested = []
    for name in plugins.names(kind):
        dotted = f"{kind}.{name}"
        mentioned = (f"test_{name}", f"mediamill.{dotted}", f'"{name}"', f'"{name.replace("_", "-")}"')
        if not named_in_a_test(mentioned):
            untested.append(dotted)
    assert untested == []


@pytest.mark.parametrize(
    "module",
    [
        "mediamill.api.app",
        "mediamill.cli",
        "mediamill.serve.supervisor",
        "mediamill.serverless.endpoint",
        "mediamill.serverless.worker",
    ],
)
def test_what_serves_callers_imports_no_gpu_library(module: str) -> None:
    script = f"import sys, {module}; from mediamill import catalog, plugins; catalog.load()\n"
    script += "for kind in ('contracts', 'api.routes', 'storage'): plugins.load_all(kind)\n"
    script += f"print(sorted({GPU_LIBRARIES!r} & sys.modules.keys()))"
    script = script.replace(f"{GPU_LIBRARIES!r} &", f"set({GPU_LIBRARIES!r}) &")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["mediamill.api.app", "mediamill.jobs.worker", "mediamill.providers.local"])
def test_what_takes_requests_and_jobs_holds_no_decoder(module: str) -> None:
    """Files of strangers are decoded in children alone."""
    script = f"import sys, {module}; from mediamill import catalog, plugins; catalog.load()\n"
    script += "for kind in ('contracts', 'api.routes', 'storage'): plugins.load_all(kind)\n"
    script += "print(sorted({'PIL', 'av', 'cv2', 'pillow_heif'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["engines", "providers"])
def test_plugins_import_without_loading_a_gpu_library(kind: str) -> None:
    """An engine module may be imported to be asked; what it needs comes with its first work."""
    script = f"import sys; from mediamill import plugins; plugins.load_all({kind!r})\n"
    script += f"print(sorted(set({GPU_LIBRARIES!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_no_import_goes_round_in_a_circle() -> None:
    graph = grimp.build_graph("mediamill", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize(("library", "file"), [("runpod", "runpod_handler.py"), ("modal", "modal_app.py")])
def test_one_file_knows_the_library_of_a_cloud(library: str, file: str) -> None:
    pattern = re.compile(rf"^\s*(?:import|from) {library}\b", re.MULTILINE)
    knowing = [p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if pattern.search(p.read_text())]
    assert knowing == [f"serverless/{file}"]


def broad_excepts() -> Iterator[str]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _raises_again(node):
                yield path.relative_to(SOURCE).as_posix()


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}) for kind in kinds
    )


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """Cleaning up and letting it go on, or wrapping what a library raised, is not swallowing it."""
    return isinstance(handler.body[-1], ast.Raise)


def test_everything_is_caught_at_the_three_edges_only() -> None:
    assert sorted(set(broad_excepts()) - set(EDGES) - HANDED_ON) == []


def test_only_the_settings_read_the_environment() -> None:
    """Passing the environment on to a process, or quieting a library by it, is not reading a setting."""
    passing = {"serve/supervisor.py", "providers/_environment.py", "media/ffmpeg.py", "engines/ffmpeg.py"}
    readers = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(path.relative_to(SOURCE).as_posix())
    assert sorted(readers - passing - {"config.py"}) == []
