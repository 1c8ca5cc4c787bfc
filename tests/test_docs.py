"""What the documents name is there."""

import re
from pathlib import Path

import pytest

from jaxcls.config import default_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = "|".join(["model", "data", "train", "optim", "schedule", "precision", "checkpoint", "log"])


def text_of(page):
    return page.read_text(encoding="utf-8")


def keys():
    config = default_config()
    return {f"{section}.{key}" for section in SECTIONS.split("|") for key in config[section]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_are_there(page):
    assigned = re.findall(rf"(?<![\w./-])(?:--config\.)?((?:{SECTIONS})\.[a-z_]+)=", text_of(page))
    assert not set(assigned) - keys()
    assert assigned or page.name != "phrase-book.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", text_of(linked), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_every_page_is_linked_to():
    linked = {name for page in PAGES for name in re.findall(r"\]\((?:docs/)?([\w-]+\.md)", text_of(page))}
    assert {page.name for page in PAGES[1:]} <= linked
