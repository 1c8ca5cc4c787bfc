"""What the documents name is there, and their commands run."""

import importlib.machinery
import os
import re
import subprocess
import sys
import types
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


def test_commands_are_found_in_blocks_and_in_the_text():
    found = try_docs().commands()
    assert "jaxcls report runs/a runs/b -o comparison.html" in found  # README.md, a block
    assert "jaxcls replay DIR --step K" in found  # README.md, in the text
    assert any(command.startswith("for class in imagenet/train/*.tar") for command in found)  # docs/imagenet.md
    assert not [command for command in found if "|" in command and not command.startswith("tail")]


@pytest.mark.long
def test_the_commands_run():
    # As a user would, on the devices that there are: without what conftest.py sets for tests in this process.
    ours = ("XLA_FLAGS", "NPROC", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, ROOT / "scripts" / "try_docs"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


def try_docs():
    loader = importlib.machinery.SourceFileLoader("try_docs", str(ROOT / "scripts" / "try_docs"))
    module = types.ModuleType(loader.name)
    module.__file__ = loader.path
    loader.exec_module(module)
    return module
