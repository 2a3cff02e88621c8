"""YAML 1.2 as DVC reads it, where PyYAML reads 1.1: the only user of yaml."""

import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from imageclf.errors import UserError


def read(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; raises `UserError` where there is no such file, or no `key: value` lines in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not here: run from the project's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    content = parse(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, as the committed one does")
    return content


def parse(text: str, source: str) -> Any:
    """What a YAML 1.2 text says; raises `UserError` that names `source` and the line."""
    try:
        return yaml.load(text, Yaml12Loader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_where(error)}") from None
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: lists within lists within lists, too deep to read") from None


class Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, as DVC reads it: PyYAML's own 1.1 makes `1e-3` text and `off` a bool.

    Duplicate keys, which PyYAML lets the last one win, are refused as DVC refuses them.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, if no key stands twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{show(key)} is not a text key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    try:
        return _parse_number(loader.construct_scalar(node))
    except ValueError:  # `._`, or more digits than Python converts
        problem = f"{node.value[:20]!r} is not a number"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _parse_number(text: str) -> int | float:
    text = text.replace("_", "").lower()
    if re.fullmatch(r"[-+]?\.(inf|nan)", text):
        return float(text.replace(".", ""))
    digits = text.lstrip("+-")
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10)
    if base != 10:
        return int(text, base)
    return int(text) if digits.isdigit() else float(text)


# First characters, pattern: the order decides, and the characters are only a fast filter.
NUMBER = re.compile(
    r"""[-+]?(?: 0b[01_]+ | 0o[0-7_]+ | 0x[0-9a-fA-F_]+
               | [0-9][0-9_]* (?:\.[0-9_]*)? (?:[eE][-+]?[0-9]+)?
               | \.[0-9_]+ (?:[eE][-+][0-9]+)?
               | \.(?:inf|Inf|INF) ) $ | \.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
Yaml12Loader.yaml_implicit_resolvers = {}
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), [*"~nN", ""])
Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]
)
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, [*"-+.0123456789"])
Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _number)


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1})" if mark else " ".join(problem.split())


def show(value: object) -> str:
    """The value as one would know it again: an alias of aliases, a line in the file, may hold a billion of them."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, 200, 200
    return shown.repr(value)
