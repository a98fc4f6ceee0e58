"""The site builds without a warning, and asks nobody for anything."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("material", reason="the site needs the extra docs: pip install -c constraints.txt -e '.[docs]'")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """Addresses that a browser fetches by itself, and anchors to other places."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "object") or (
            tag == "link" and given.get("rel") != "canonical"
        ):
            self.fetched += [address for key in ("src", "href", "data") if (address := given.get(key))]
        elif tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))


def test_every_page_of_docs_is_there(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert Path("concepts.html") in pages
    assert [page for page in pages if not (site / page).is_file()] == []
    assert list(site.rglob("*.py")) == []


def test_pages_load_only_what_lies_beside_them(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for address in Loaded(page.read_text(encoding="utf-8")).fetched:
            assert not address.startswith(("http:", "https:", "//")), f"{page.name} loads {address}"
            assert (page.parent / address.partition("?")[0]).resolve().is_file(), f"{page.name} loads {address}"


def test_linked_files_of_the_repository_are_taken_along(site: Path) -> None:
    page = site / "results" / "quickstart.html"
    links = Loaded(page.read_text(encoding="utf-8")).links
    assert "../repository/notes/results/quickstart/results.csv" in links
    recorded = ROOT / "notes" / "results" / "quickstart" / "results.csv"
    assert (site / "repository/notes/results/quickstart/results.csv").read_bytes() == recorded.read_bytes()
    assert (site / "repository" / "notes" / "LOG.html").is_file()
