"""Tests that the sources contain no call that could run code from a file, or write to paths from an archive."""

import ast
from pathlib import Path

import pytest
from imports import ROOT, SOURCE

from imageclf import yaml12

TREES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for place in (SOURCE, ROOT / "stages", ROOT / "benchmarks")
    for path in sorted(place.rglob("*.py"))
}

NEVER = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "os.execv",
    "os.execvp",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "torch.hub.load",
    "mlflow.pyfunc.load_model",
    "mlflow.pytorch.load_model",
}
PICKLES = {"pickle.load", "pickle.loads", "pickle.Unpickler", "pickle.dumps", "pickle.dump"}
UNPACKING = {"extractall", "extract"}


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Return the calls that could run code from a file, or write to paths from an archive."""
    return [
        f"line {call.lineno}: {ast.unparse(call)[:80]}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and _is_unsafe(call)
    ]


def _is_unsafe(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return (
        name in NEVER
        or name in PICKLES
        or name.rpartition(".")[2] in UNPACKING | {"load_model", "unpack_archive"}
        or (name == "torch.load" and keywords.get("weights_only") != "True")
        or (name in {"np.load", "numpy.load"} and keywords.get("allow_pickle") != "False")
        or (name == "yaml.load" and not _is_safe_loader(call))
        or keywords.get("shell", "False") != "False"
    )


def _is_safe_loader(call: ast.Call) -> bool:
    loader = ast.unparse(call.args[1]) if len(call.args) > 1 else ""
    return loader in {"yaml.SafeLoader", "Yaml12Loader"} and issubclass(yaml12.Yaml12Loader, yaml12.yaml.SafeLoader)


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_has_no_unsafe_call(path: Path) -> None:
    assert unsafe_calls(TREES[path]) == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "pickle.loads(data)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "tar.extractall(path)",
        "archive.extract(name)",
        "shutil.unpack_archive(path)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "eval(text)",
        "exec(text)",
        "mlflow.pyfunc.load_model(uri)",
        "flavor.load_model(uri)",
    ],
)
def test_each_unsafe_call_is_found(code: str) -> None:
    """Show that the test above can fail."""
    assert len(unsafe_calls(ast.parse(f"def function():\n    return [{code}]"))) == 1


def test_safe_calls_are_allowed() -> None:
    safe = "torch.load(path, weights_only=True); np.load(path, allow_pickle=False); tar.extractfile(member)"
    assert unsafe_calls(ast.parse(safe)) == []
    assert unsafe_calls(ast.parse("re.compile('x')")) == []


def test_no_source_imports_these_names_directly() -> None:
    """Names imported by e.g. `from torch import load` would not be found."""
    watched = {"load", "loads", "system", "extractall", "load_model", "Unpickler"}
    hidden = [
        f"{path.name}: {alias.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("imageclf")
        for alias in node.names
        if alias.name in watched
    ]
    assert hidden == []
