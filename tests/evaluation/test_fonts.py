"""Tests that class names in any script are drawn with fonts that have them, or as numbers, without warnings."""

import itertools
import logging
import warnings
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from imageclf.evaluation import figure as figures
from imageclf.evaluation import fonts, plots

FOREIGN = ["猫", "犬", "🐰", "العربية", "with space ", "Käfer", "हिन्दी", "line\nbreak", "\u202ecat\u200b"]


@pytest.fixture(autouse=True)
def _only_the_fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use only the fonts of matplotlib, as in a container without other fonts."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    fonts._families.cache_clear()
    yield
    fonts._families.cache_clear()


def test_names_without_a_font_are_numbers_that_the_note_explains() -> None:
    found = fonts.labels(FOREIGN)
    assert found.texts[:3] == ["#0", "#1", "#2"]
    assert found.texts[3:6] == ["العربية", "with space ", "Käfer"]
    assert found.texts[7] == "line\\nbreak"
    assert found.numbered == [0, 1, 2, 6]
    note = fonts.note(FOREIGN)
    assert "4 class names" in note
    assert "#0 is '猫', #1 is '犬', #2 is '🐰', ..." in note
    assert note.endswith("\n")
    assert fonts.note(["cat", "Käfer", "العربية"]) == ""


def test_a_font_that_has_the_characters_is_used(tmp_path: Path) -> None:
    """cmr10 lacks Cyrillic and Arabic, DejaVu Sans has both."""
    names = ["кошка", "العربية", "cat"]
    with mpl.rc_context({"font.family": ["cmr10"], "axes.formatter.use_mathtext": True}), warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts._families.cache_clear()
        found = fonts.labels(names)
        assert found.families[0] == "cmr10"
        assert len(found.families) > 1
        assert found.numbered == []
        assert found.texts == names
        plots.plot_confusion(tmp_path / "plot.png", names, np.eye(3, dtype=np.int64))


def test_a_font_installed_after_matplotlib_wrote_its_list_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    path = font_manager.findfont("DejaVu Sans")
    listed = [entry for entry in font_manager.fontManager.ttflist if not entry.name.startswith("DejaVu Sans")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [path, "/nowhere/broken.ttf"])
    assert fonts._installed(font_manager)["DejaVu Sans"] == path


def test_plots_of_foreign_names_give_no_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = len(FOREIGN)
    images = np.zeros((8, 3, 8, 8), np.uint8)
    labels, probabilities = np.arange(8), np.eye(count, dtype=np.float32)[np.arange(8)]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        plots.plot_confusion(tmp_path / "confusion.png", FOREIGN, np.eye(count, dtype=np.int64))
        plots.plot_predictions(tmp_path / "samples.png", images, labels, probabilities, FOREIGN)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("cat", 3, "cat"),
        ("caterpillar", 5, "ca…ar"),
        ("caterpillar", 6, "cat…ar"),
        ("猫猫猫猫", 5, "猫…猫"),
        ("猫猫猫猫", 8, "猫猫猫猫"),
        ("", 1, ""),
    ],
)
def test_a_long_name_is_cut_in_the_middle(text: str, most: int, short: str) -> None:
    assert fonts.cut(text, most) == short
    assert fonts.columns(short) <= most


def plotted(monkeypatch: pytest.MonkeyPatch, path: Path, names: list[str]) -> Figure:
    """Return the figure of a confusion plot instead of saving it."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda drawn, _: kept.append(drawn))
    plots.plot_confusion(path, names, np.eye(len(names), dtype=np.int64))
    return kept[0]


def species(count: int) -> list[str]:
    return [f"n{number:08d}-some species name" for number in range(count)]


@pytest.mark.parametrize("count", [2, plots.MOST_LABELS])
def test_labels_do_not_overlap(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = plotted(monkeypatch, tmp_path, species(count))
    figure.canvas.draw()
    (axes,) = figure.axes
    for axis, start, end in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
        boxes = sorted((label.get_window_extent() for label in axis.get_ticklabels()), key=attrgetter(start))
        assert len(boxes) == count
        assert all(getattr(after, start) >= getattr(before, end) for before, after in itertools.pairwise(boxes))


@pytest.mark.parametrize(("count", "step"), [(25, 1), (140, 1), (141, 2), (1200, 9)])
def test_of_many_labels_some_are_drawn_and_the_axes_say_so(
    count: int, step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (axes,) = plotted(monkeypatch, tmp_path, species(count)).axes
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == species(count)[::step]
        assert list(axis.get_ticklocs()) == list(range(0, count, step))
        assert (f"(one class in {step} is named)" in axis.get_label_text()) == (step > 1)


@pytest.mark.parametrize("names", [["x" * 240, "b"], ["猫" * 200, "b", "c"]])
def test_a_very_long_name_leaves_room_for_the_matrix(
    names: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figure = plotted(monkeypatch, tmp_path, names)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_window_extent().width > 100
