"""Sentences about wrong parameters, from the errors of pydantic."""

import difflib
import re
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from imageclf import yaml12


def sentences(error: ValidationError, schema: type[BaseModel]) -> Iterator[str]:
    """Yield one sentence per wrong key of `schema`, with the key, the value and the nearest valid choice."""
    reported: set[str] = set()
    errors = error.errors()
    missing = [str(details["loc"][-1]) for details in errors if details["type"] == "missing"]
    for details in errors:
        group, key = _split(details, schema)
        if key not in reported:  # pydantic reports an error for each member of a union
            reported.add(key)
            # If a key is misspelled, the right one is missing.
            keys = [name for name in group.model_fields if name in missing] or list(group.model_fields)
            sentence = _sentence(details, keys) + "".join(
                f"; or {other.get('ctx', {})['expected']}"  # threads: a number, or 'auto'
                for other in errors
                if other is not details and other["type"] == "literal_error" and _split(other, schema)[1] == key
            )
            yield f"{key}: {sentence}" if key else sentence


def _split(details: ErrorDetails, schema: type[BaseModel]) -> tuple[type[BaseModel], str]:
    """Return the class of a wrong key, and the key as the user writes it: `runtime.device`, `hidden[1]`."""
    location, group = details["loc"], schema
    field = schema.model_fields.get(str(location[0])) if len(location) > 1 else None
    if field and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        group = field.annotation
    head = location[: 1 if group is schema else 2]
    # The key is followed by list indices, and by names of the members of a union.
    indices = "".join(f"[{part}]" for part in location[len(head) :] if isinstance(part, int))
    return group, ".".join(map(str, head)) + indices


def _sentence(details: ErrorDetails, keys: list[str]) -> str:
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return "is missing; see the committed params.yaml"
        case "extra_forbidden":
            suggestion = _suggestion(str(details["loc"][-1]), keys)
            return (
                f"is not a parameter{suggestion}"
                if suggestion
                else f"is not a parameter; choose from {', '.join(keys)}"
            )
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"{yaml12.show(value)} is not one of {', '.join(choices)}{_suggestion(yaml12.show(value), choices)}"
        case "value_error":
            return str(context["error"])
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return f"{message.replace('input should', 'should')}, got {yaml12.show(value)}{_hint(value)}"


def _suggestion(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.4) or choices[:1] * (len(choices) == 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hint(value: object) -> str:
    return ", which is text: remove the quotes" if isinstance(value, str) and yaml12.NUMBER.match(value) else ""
