"""What a checkout holds besides code: commits, the pages that a package index shows, hooks and templates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Source"]
FILE = re.compile(rf"{re.escape(REPOSITORY)}/(?:blob|tree)/main/([^\s)#]+)")
RAW = re.compile(r"https://raw\.githubusercontent\.com/edgeattn/edgeattn/main/([^\s)#]+)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"")

COMMITS = 30  # that are looked at
LONGEST_SUBJECT = 72  # characters; what `git log --oneline` shows in a terminal of 80 columns


def subjects() -> list[str]:
    """First paragraphs of the last commits, as git takes them for a subject."""
    log = subprocess.run(
        ["git", "log", "--no-merges", f"--max-count={COMMITS}", "--format=%s"],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return log.stdout.splitlines()


def test_subjects_of_commits_have_at_most_72_characters() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there are no commits to look at")
    found = subjects()
    assert found
    assert [subject for subject in found if len(subject) > LONGEST_SUBJECT] == []


def links_of(text: str) -> list[str]:
    """Targets of links and images, outside of code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [markdown or html for markdown, html in LINK.findall(prose)]


def test_the_search_for_links_sees_markdown_html_and_no_code() -> None:
    text = (
        '[a](x.md "title") ![b](y.svg)\n<img width="1" src="z.svg"> `[c](no.md)`\n```\n[d](no.md)\n```\n[`e`](w.md#f)'
    )
    assert links_of(text) == ["x.md", "y.svg", "z.svg", "w.md#f"]


def test_readme_has_absolute_links_alone() -> None:
    """A package index renders it far from the repository, where relative links lead nowhere."""
    found = links_of(README)
    assert len(found) > 20
    assert [link for link in found if not link.startswith("https://")] == []


def test_what_readme_links_to_in_the_repository_is_there() -> None:
    own = [link for link in links_of(README) if link.startswith((REPOSITORY, "https://raw.githubusercontent.com"))]
    files = [match[1] for link in own if (match := FILE.match(link) or RAW.match(link))]
    assert len(files) == len(own) > 20
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_what_a_page_links_to_in_the_repository_is_there(page: Path) -> None:
    files = [match[1] for link in links_of(page.read_text(encoding="utf-8")) if (match := FILE.match(link))]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_urls_of_the_project_lead_into_its_repository() -> None:
    urls = PROJECT["urls"]
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(urls)
    assert {url for url in urls.values() if not url.startswith(REPOSITORY)} == set()
    files = [match[1] for url in urls.values() if (match := FILE.match(url))]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_changelog_has_a_section_for_this_version_and_orders_changes_by_kind() -> None:
    import edgeattn

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[([^\]]+)\](?: - \d{4}-\d{2}-\d{2})?$", text, flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert edgeattn.__version__ in sections
    assert len(re.findall(r"^## ", text, flags=re.MULTILINE)) == len(sections)
    kinds = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("tool", ["ruff check", "ruff format", "mypy", "lint-imports"])
def test_hooks_run_what_make_lint_runs(tool: str) -> None:
    assert f"$(BIN)/{tool}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"entry: .venv/bin/{tool}" in (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")


def test_the_hook_of_subjects_takes_what_the_test_of_subjects_takes() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"entry: '(.+)'", text)
    refused = re.compile(pattern, re.MULTILINE)
    assert not refused.search("x" * LONGEST_SUBJECT + "\n\n" + "why " * 40)
    assert refused.search("x" * (LONGEST_SUBJECT + 1) + "\n")
