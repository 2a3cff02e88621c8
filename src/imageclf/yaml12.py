"""A reader for YAML 1.2, like that of DVC; PyYAML reads YAML 1.1. No other module uses yaml."""

import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from imageclf.core.errors import UserError


def read(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file; raises `UserError` if there is no file, or no `key: value` lines in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist here; run the command in the project's root folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    content = parse(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} has no `key: value` lines; see the committed file")
    return content


def parse(text: str, source: str) -> Any:
    """Return the content of a YAML 1.2 text; raises `UserError` with `source` and the line."""
    try:
        return yaml.load(text, Yaml12Loader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_where(error)}") from None
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: the lists are nested too deeply") from None


MAX_DEPTH = 100
"""Maximum number of lists in brackets that are nested in one another."""


class Yaml12Loader(yaml.SafeLoader):
    """A loader for the core schema of YAML 1.2. In YAML 1.1, `1e-3` is text and `off` is a bool.

    It refuses duplicate keys, like DVC; PyYAML takes the last one. It also refuses more than `MAX_DEPTH` open brackets,
    for which PyYAML takes seconds.
    """

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:  # noqa: N803 - PyYAML's name
        """Read an opening bracket or brace."""
        if self.flow_level >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "the lists are nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; raises `ConstructorError` if a key is not text or occurs twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{show(key)} is not a text key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} occurs twice", key_node.start_mark)
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


NUMBER = re.compile(
    r"""[-+]?(?: 0b[01_]+ | 0o[0-7_]+ | 0x[0-9a-fA-F_]+
               | [0-9][0-9_]* (?:\.[0-9_]*)? (?:[eE][-+]?[0-9]+)?
               | \.[0-9_]+ (?:[eE][-+][0-9]+)?
               | \.(?:inf|Inf|INF) ) $ | \.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
# PyYAML tries the patterns in this order if the first character of the text is in the list.
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
    """Return a short text for a value: with aliases of aliases, one line of YAML can hold a billion of values."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, 200, 200
    return shown.repr(value)
