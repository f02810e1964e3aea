"""README and docs/: links lead somewhere, every page is found from README, and every sub-command stands in a page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeladder.launch import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What can stand behind a `#`: headings in lower case, punctuation gone, blanks as hyphens."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Links within the repository: the file, and what follows `#`."""
    for link in LINK.findall(page.read_text("utf-8")):
        if not link.startswith(("http://", "https://")):
            file, _, anchor = link.partition("#")
            yield ((page.parent / file).resolve() if file else page), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), (file, anchor)


def test_every_page_and_picture_is_found_from_the_readme() -> None:
    found, open_ = {README}, [README]
    while open_:
        new = {file for file, _ in links(open_.pop()) if file.is_file()} - found
        found |= new
        open_ += [file for file in new if file.suffix == ".md"]
    assert {file for file in (ROOT / "docs").rglob("*.*") if file.is_file()} <= found


def test_every_sub_command_stands_in_the_readme_and_says_what_its_arguments_are() -> None:
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    text = README.read_text("utf-8")
    for name, command in commands.choices.items():
        assert f"safeladder {name} " in text or f"`{name} RUN" in text or f"safeladder {name}\n" in text, name
        unsaid = [action.dest for action in command._actions if not action.help]
        assert not unsaid, (name, unsaid)
