"""Tests that docstrings begin with a verb or a noun phrase, and that texts avoid words that are hard to read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from imports import ROOT

CODE = [path for place in ("src", "stages", "benchmarks", "tests") for path in sorted((ROOT / place).rglob("*.py"))]
TEXTS = [ROOT / name for name in ("README.md", "params.yaml", "dvc.yaml", "recipes.yaml")]
TEXTS += sorted((ROOT / "docs").glob("*.md"))

FIRST_WORDS = set(
    """
    of whether what where how which who when if in on by for with as else none nothing not no its it their these those
    so and but than to from at up unless until while because
    """.split()  # noqa: SIM905
)
"""Words, in lower case, with which no docstring begins."""

BANNED = {
    r"knobs?": "parameter",
    r"one's own": "your own",
    r"goes on": "resumes, continues",
    r"beside": "next to, in addition to",
    r"neighbour\w*": "neighbor",
    r"\w*colour\w*": "color",
    r"grey\w*": "gray",
    r"and may go": "and may be deleted",
    r"insists": "forces a run",
}
"""Patterns that occur in no text and in no source outside tests, and what to write instead."""


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield the docstrings of a module, its classes, functions and attributes.

    An attribute docstring is a string that follows an assignment.
    """
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            if before is None and not documented:
                continue
            if before is not None and not isinstance(before, ast.Assign | ast.AnnAssign):
                continue
            match statement:
                case ast.Expr(ast.Constant(str() as text)):
                    yield text


def problems(path: Path) -> list[str]:
    """Return the rules that a file breaks."""
    text = path.read_text(encoding="utf-8")
    found = []
    if path.suffix == ".py":
        found += bad_beginnings(text)
    if "tests" not in path.relative_to(ROOT).parts:
        found += banned_words(text)
    return found


def bad_beginnings(source: str) -> list[str]:
    """Return the first lines of the docstrings that begin with a forbidden word."""
    lines = [text.strip().partition("\n")[0] for text in docstrings(ast.parse(source))]
    words = [(re.match(r"[\w'-]*", line), line) for line in lines]
    return [line for word, line in words if word is not None and word[0].lower() in FIRST_WORDS]


def banned_words(text: str) -> list[str]:
    """Return the banned words and phrases in a text, with their replacement."""
    return [
        f"{word[0]!r}: write {replacement!r}"
        for pattern, replacement in BANNED.items()
        for word in re.finditer(rf"\b({pattern})\b".replace(" ", r"\s+"), text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", CODE + TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_written_in_plain_english(path: Path) -> None:
    assert problems(path) == []


def test_each_kind_of_docstring_is_checked() -> None:
    source = '''
"""Of a module."""
VALUE = 1
"""Whether a value."""

class Example:
    """What a class."""

    field: int
    """How an attribute."""

    def method(self):
        """If a method."""
        self.value = 1
        """None of these."""

async def function():
    """The function, which is fine."""
    print()
    "Of a string that documents nothing"
'''
    assert sorted(bad_beginnings(source)) == [
        "How an attribute.",
        "If a method.",
        "None of these.",
        "Of a module.",
        "What a class.",
        "Whether a value.",
    ]


def test_banned_words_are_found_as_whole_words() -> None:
    assert banned_words("a Knob, two knobs, their colours\nand besides: an ingrown greyhound\nthat goes\non") == [
        "'Knob': write 'parameter'",
        "'knobs': write 'parameter'",
        "'goes\\non': write 'resumes, continues'",
        "'colours': write 'color'",
        "'greyhound': write 'gray'",
    ]
