"""Tests that the blocks of docs/by-hand.md print what the page shows, and that its text agrees with them."""

import ast
import code
import re

import pytest
from imports import ROOT

PAGE = (ROOT / "docs" / "by-hand.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TEXT = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
CALLS: list[tuple[str, str, str]] = re.findall(r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \|", PAGE, re.MULTILINE)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))


@pytest.mark.usefixtures("one_thread")
def test_each_block_pasted_into_python_prints_what_the_page_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    console = code.InteractiveConsole()
    for source, shown in BLOCKS:
        for line in [*source.splitlines(), ""]:
            console.push(line)
        printed, error = capsys.readouterr()
        assert error == ""
        assert printed == shown
    assert len(BLOCKS) == PAGE.count("```python") > 0


def test_each_number_in_the_text_is_in_a_block() -> None:
    in_blocks = set[str]().union(*(numbers(source) | numbers(shown) for source, shown in BLOCKS))
    assert {"70"} <= numbers(TEXT) <= in_blocks


def test_each_call_in_the_table_is_in_the_function_that_the_table_names() -> None:
    for call, file, function in CALLS:
        tree = ast.parse((ROOT / "src" / "imageclf" / file).read_text(encoding="utf-8"))
        bodies = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
        found = {ast.unparse(node) for body in bodies for node in ast.walk(body) if isinstance(node, ast.Call)}
        assert call in found, f"{function} in {file}"
    named = " ".join(call for call, _, _ in CALLS)
    for name in ("requires_grad_", "zero_grad", "backward", "detach", "no_grad", "inference_mode"):
        assert name in named
