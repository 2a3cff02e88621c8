"""Assign the files in a folder of images to splits and classes, in one of two layouts.

    train/<class>/*, val/<class>/*, test/<class>/*    val and test are optional; also Train, valid, testing, ...
    <class>/*                                         all images are train

Outer folders that contain everything are ignored. A file in a subfolder of a class belongs to that class. Names are
normalized to Unicode NFC, because operating systems write the same name in different forms.
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imageclf.contracts.raw import LeftOut
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.download.entries import Entry, is_system_file, readable

MAX_FILE = 64 * 2**20
"""Maximum size of an image file in bytes."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The split by the name of its folder in lower case."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
NOT_IMAGES = (
    *ARCHIVES,
    *(".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".log", ".doc", ".docx"),
    *(".csv", ".tsv", ".xls", ".xlsx", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml"),
    *(".py", ".ipynb", ".sh", ".mat", ".npy", ".npz", ".pkl", ".h5", ".cache", ".dvc"),
)
"""Suffixes of files that are often next to images. A folder that has only such files is not a class."""

Parts = tuple[str, ...]


class Arrangement(NamedTuple):
    """The sorted classes, the entries to pack by their names in the tar, and the skipped files."""

    classes: list[str]
    chosen: dict[str, Entry]
    skipped: list[LeftOut]


class _Item(NamedTuple):
    """An entry, the parts of its name, its split and class (empty if it has none) and the rest of its name."""

    parts: Parts
    entry: Entry
    folder: Parts = ()
    file: str = ""

    @property
    def source(self) -> str:
        """Name of the entry, without "." and double slashes."""
        return str(PurePosixPath(self.entry.name))

    @property
    def may_be_image(self) -> bool:
        return not (self.entry.is_folder or self.parts[-1].lower().endswith(NOT_IMAGES))


class _Layout(NamedTuple):
    """Position of the class folders: below the outer folders `around`, and below the split folders if there are any."""

    around: Parts
    splits: dict[str, str]

    def place(self, item: _Item) -> _Item:
        """Return the item with its split, class and name, if it has them."""
        if _leads_out(item.parts) or item.parts[: len(self.around)] != self.around:
            return item
        split, inner = "train", item.parts[len(self.around) :]
        if self.splits:
            split, inner = self.splits.get(inner[0], "") if inner else "", inner[1:]
        if not split or len(inner) + item.entry.is_folder < 2:
            return item
        return item._replace(folder=(split, inner[0]), file="__".join(inner[1:]))

    def reason(self, item: _Item, classes: set[Parts]) -> str | None:
        """Return the reason why a file is skipped, if it is; `classes` are the folders that have images."""
        if _leads_out(item.parts):
            return "an absolute path, or a path with .."
        if item.entry.problem:
            return item.entry.problem
        if not item.folder:
            inner = item.parts[len(self.around) :]
            is_apart = self.splits and len(inner) > 1 and inner[0] not in self.splits
            return "not in train/, val/ or test/" if is_apart else "not in the folder of a class"
        if item.folder not in classes:
            return "in a folder without images"
        return f"more than {MAX_FILE // 2**20} MiB" if item.entry.size > MAX_FILE else None


def arrange(origin: Path, entries: Iterable[Entry]) -> Arrangement:
    """Sort the entries of `origin` into splits and classes.

    Raises `UserError` if there are no images, only one class, or an empty class, and if the splits and classes are
    ambiguous.
    """
    items = sorted((_Item(_parts(entry.name), entry) for entry in entries), key=lambda item: (item.parts, item.source))
    items = [
        item for item in items if item.parts and (_leads_out(item.parts) or not any(map(is_system_file, item.parts)))
    ]
    layout = _layout(origin, [item.parts for item in items if item.may_be_image and not _leads_out(item.parts)])
    items = [layout.place(item) for item in items]
    files = [item for item in items if not item.entry.is_folder]
    classes = {item.folder for item in files if item.may_be_image}
    chosen: dict[str, Entry] = {}
    skipped: list[LeftOut] = []
    sources: set[str] = set()
    for item in files:
        if reason := layout.reason(item, classes) or ("a second file of this name" if item.source in sources else None):
            skipped.append(LeftOut(readable(item.entry.name), reason))
        else:
            sources.add(item.source)
            chosen[_unique("/".join((*item.folder, readable(item.file))), chosen)] = item.entry
    classes |= {item.folder for item in items if item.entry.is_folder and not item.file}
    texts = {item.folder for item in files} - {item.folder for item in files if item.may_be_image}
    empty = classes - texts - {tuple(name.split("/")[:2]) for name in chosen} - {()}
    _check(origin, chosen, empty, skipped)
    return Arrangement(sorted({name.split("/")[1] for name in chosen}), chosen, sorted(skipped))


def _parts(name: str) -> Parts:
    return PurePosixPath(unicodedata.normalize("NFC", name)).parts  # without "." and double slashes


def _leads_out(parts: Parts) -> bool:
    return ".." in parts or parts[0].startswith("/")


def _unique(name: str, taken: dict[str, Entry]) -> str:
    """Return `name`, with a number if it is taken: two files may have the same name in NFC or without subfolders."""
    unique, number = name, 1
    while unique in taken:
        path, number = PurePosixPath(name), number + 1
        unique = str(path.with_name(f"{path.stem} ({number}){path.suffix}"))
    return unique


def _layout(origin: Path, images: list[Parts]) -> _Layout:
    """Find the layout; `images` are the paths of the files that may be images."""
    depth = 0
    while True:
        folders = {path[depth] for path in images if len(path) > depth + 1}
        nested = {path[depth] for path in images if len(path) > depth + 2}
        splits = {folder: SPLITS[folder.casefold()] for folder in folders if folder.casefold() in SPLITS}
        around = next((path[:depth] for path in images if len(path) > depth + 1), ())
        if len(folders) == 1 and nested and not splits:
            depth += 1
        elif "train" in {splits[folder] for folder in nested & set(splits)} or (splits and folders <= set(splits)):
            _check_splits(origin, splits)
            return _Layout(around, splits)
        else:
            _check_no_splits(origin, depth, images, folders, nested & set(splits))
            return _Layout(around, {})


def _check_splits(origin: Path, splits: dict[str, str]) -> None:
    for split in set(splits.values()):
        names = sorted(name for name in splits if splits[name] == split)
        if len(names) > 1:
            raise UserError(
                f"folder: {origin} has both {names[0]!r} and {names[1]!r}; put their images into one of them"
            )


def _check_no_splits(origin: Path, depth: int, images: list[Parts], folders: set[str], splits: set[str]) -> None:
    """Raise `UserError` if some folders that look like classes are probably splits."""
    if splits:
        raise UserError(f"folder: {origin} has {min(splits)!r} next to classes; put the classes into a folder 'train'")
    inner = {
        path[depth : depth + 2] for path in images if len(path) > depth + 3 and path[depth + 1].casefold() in SPLITS
    }
    if inner:
        raise UserError(
            f"folder: {origin} has {'/'.join(min(inner))!r} next to other folders; name the one to train on"
        )
    likely = sorted(name for name in folders if set(re.split(r"[\W_]+", name.casefold())) & set(SPLITS))
    if len(likely) > 1:
        raise UserError(f"folder: {origin} has {likely[0]!r} and {likely[1]!r}; rename them to train, val or test")


def _check(origin: Path, chosen: dict[str, Entry], empty: set[Parts], skipped: list[LeftOut]) -> None:
    """Raise `UserError` if there are fewer than two classes, or if a class has no image in train."""
    places = {tuple(name.split("/")[:2]) for name in chosen}
    classes = {name for split, name in places if split == "train"}
    if not classes:
        raise UserError(f"folder: {origin} has no train/<class>/<image> and no <class>/<image>{_hint(skipped)}")
    if lacking := sorted(name for split, name in empty if split == "train"):
        raise UserError(f"folder: {origin} has no image in the class {lacking[0]!r}; add images, or remove the class")
    if len(classes) == 1:
        raise UserError(f"folder: {origin} has only one class, {min(classes)!r}; at least two are needed")
    if unknown := sorted(f"{split}/{name}" for split, name in places if name not in classes):
        raise UserError(
            f"folder: {origin} has {unknown[0]!r}, but train/ does not have this class; rename or remove it"
        )
    for name in sorted(classes):
        if readable(name) != name:
            raise UserError(
                f"folder: the name of the class {name!r} is not UTF-8; rename it, for example to {readable(name)!r}"
            )


def _hint(skipped: list[LeftOut]) -> str:
    """Return a hint for a folder without classes: one of the files that it has."""
    if archives := sorted(name for name, _ in skipped if name.lower().endswith(ARCHIVES)):
        return f"; it has the archive {archives[0]!r}: unpack that first"
    others = f"; it has {min(skipped).name!r}, {min(skipped).reason}" if skipped else ""
    if Path.cwd() != paths.repository():
        others += (
            "; a --temp or --queue experiment does not see files that git ignores, unless `folder` is an absolute path"
        )
    return others
