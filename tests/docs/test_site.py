"""The site of the documentation: `make docs` builds it strictly; here stands what strictness does not see."""

from __future__ import annotations

import importlib.util
import io
import pkgutil
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

import edgeattn
import edgeattn.runtimes
from edgeattn.cli.console import PICTURE_WIDTH
from edgeattn.cli.demo import DEMO_TARGETS
from edgeattn.targets import get_target
from tests.docs.pages import ROOT

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
DOCUMENTED: list[str] = re.findall(  # what docs/api.md takes from docstrings
    r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


def test_every_page_stands_in_the_navigation_once() -> None:
    named = re.findall(r"([\w-]+\.md)$", CONFIG, flags=re.MULTILINE)
    assert sorted(named) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_page_to_start_with_links_to_every_other() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)", text)) == set()


def test_nothing_is_fetched_by_the_build_or_by_its_readers() -> None:
    assert re.search(r"^  font: false\b", CONFIG, flags=re.MULTILINE)
    assert re.findall(r"^(?:repo_url|extra_javascript|extra_css)", CONFIG, flags=re.MULTILINE) == []
    assert set(re.findall(r"^  - (\w+):?$", CONFIG.partition("\nplugins:\n")[2], flags=re.MULTILINE)) == {
        "search",
        "mkdocstrings",
    }


@pytest.mark.parametrize("path", DOCUMENTED)
def test_what_the_api_names_can_be_imported_and_is_documented(path: str) -> None:
    """The builder reads the sources: a name that only they have would render, and fail in a program."""
    assert pkgutil.resolve_name(path).__doc__


def test_the_api_has_all_of_edgeattn_and_of_what_a_device_runs() -> None:
    assert {f"edgeattn.{name}" for name in edgeattn.__all__} - {"edgeattn.__version__"} <= set(DOCUMENTED)
    names = {f"edgeattn.runtimes.{name}" for name in edgeattn.runtimes.__all__}
    names -= {name for name in names if importlib.util.find_spec(name) is not None}  # modules, which edgeattn takes
    assert names - {"edgeattn.runtimes.load"} <= set(DOCUMENTED)
    assert "edgeattn.errors" in set(DOCUMENTED)


def test_the_picture_of_readme_is_of_the_form_that_the_demo_draws() -> None:
    picture = (ROOT / "docs" / "table.svg").read_text(encoding="utf-8")
    recorder = Console(file=io.StringIO(), record=True, width=PICTURE_WIDTH)
    recorder.print("x")
    width = [float(ET.fromstring(svg).attrib["viewBox"].split()[2]) for svg in (picture, recorder.export_svg())]
    assert width[0] == width[1]
    assert "@font-face" not in picture
    shown = "".join(ET.fromstring(picture).itertext())
    assert [name for name in DEMO_TARGETS if get_target(name).name not in shown] == []


def test_make_builds_the_site_strictly_and_before_the_tests() -> None:
    """It counts the warnings that it prints: with --quiet a link to nothing would pass."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^test:.*\bdocs\b", makefile, flags=re.MULTILINE)
    assert re.findall(r"mkdocs .*", makefile) == ["mkdocs build --strict"]
