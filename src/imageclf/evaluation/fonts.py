"""Texts that the plots show for class names, and the installed fonts that have their characters.

matplotlib's own font has no Chinese, Japanese or Korean characters and no emoji: other installed fonts are used for
them. A name that no installed font can draw is shown as the index of its class, such as "#3".
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple


class Labels(NamedTuple):
    """Labels for a list of classes.

    texts: one per class, without control characters.
    families: the font families to try for each character, in this order.
    numbered: the indices of the classes that are shown as their index.
    """

    texts: list[str]
    families: list[str]
    numbered: list[int]


def labels(names: Sequence[str]) -> Labels:
    """Return the labels of these classes for the fonts on this machine."""
    printed = ["".join(map(_printed, name)) for name in names]
    families, missing = _families(frozenset("".join(printed)))
    texts, numbered = [], []
    for number, text in enumerate(printed):
        lacking = {character for character in missing.intersection(text) if unicodedata.category(character) != "Cf"}
        if lacking:
            numbered.append(number)
        # Format characters (Cf), such as joiners, are invisible and can be left out.
        texts.append(f"#{number}" if lacking else "".join(part for part in text if part not in missing))
    return Labels(texts, list(families), numbered)


def note(names: Sequence[str], examples: int = 3) -> str:
    """Return a line that lists names shown as numbers, up to `examples`; "" if there are none."""
    numbered = labels(names).numbered
    if not numbered:
        return ""
    first = ", ".join(f"#{number} is {names[number]!r}" for number in numbered[:examples])
    more = ", ..." if len(numbered) > examples else ""
    return (
        f"no font on this machine has all characters of {len(numbered):,} class names; the plots show their numbers: "
        f"{first}{more} (per_class.csv lists all names from #0 on). A font such as Noto Sans CJK has more characters\n"
    )


def columns(text: str) -> int:
    """Return the width of `text` in columns of a terminal: a Chinese character or an emoji has two."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def cut(text: str, most: int) -> str:
    """Shorten a text to `most` columns by its middle, because the names in a data set often have the same beginning."""
    if columns(text) <= most:
        return text
    head = tail = ""
    for left, right in zip(text, reversed(text), strict=True):
        if columns(head + left + tail) < most:
            head += left
        if columns(head + right + tail) < most:
            tail = right + tail
    return f"{head}…{tail}"


def _printed(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


@lru_cache(maxsize=8)
def _families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the font families to use for `characters`, and the characters that none of them has."""
    from matplotlib import font_manager, rcParams

    families = tuple(rcParams["font.family"])
    missing = characters - _characters(font_manager.findfont(font_manager.FontProperties()), characters)
    found = {family: _characters(path, missing) for family, path in _installed(font_manager).items()} if missing else {}
    while found:  # take the family with most of the missing characters
        best = max(found, key=lambda family: len(found[family] & missing))
        gained = found.pop(best) & missing
        if not gained:
            break
        families, missing = (*families, best), missing - gained
    return families, missing


def _installed(font_manager: Any) -> dict[str, str]:
    """Return the path of the regular font of each family, sorted by family."""
    manager = font_manager.fontManager
    for path in sorted(set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}):
        try:  # this font was installed after matplotlib wrote its list of fonts
            manager.addfont(path)
        except Exception:  # noqa: BLE001, S112 - matplotlib, too, ignores fonts that it cannot read
            continue
    regular = {
        entry.name: entry.fname
        for entry in manager.ttflist
        if (entry.style, entry.stretch) == ("normal", "normal")
        and entry.weight in {400, "normal", "regular"}
        and not entry.name.startswith("Last Resort")  # draws a box for every character
    }
    return dict(sorted(regular.items()))


def _characters(path: str, wanted: frozenset[str]) -> frozenset[str]:
    """Return the `wanted` characters that a font can draw; none for a bitmap font, which matplotlib cannot scale."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
    except Exception:  # noqa: BLE001 - a damaged file, or one deleted after matplotlib wrote its list
        return frozenset()
    if not font.scalable:
        return frozenset()
    return frozenset(character for character in wanted if font.get_char_index(ord(character)))
