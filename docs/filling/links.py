"""Hook of the site: files of the repository that pages link to are taken into it.

On the forge a page links to `../notes/LOG.md` by its place in the repository. The site has `docs/` alone, so each linked file is
added under `repository/` at the same place, and the link is rewritten. Markdown becomes a page of its own, whose links are followed
too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHELF = "repository"
LINK = re.compile(r"(?P<before>\]\(|\b(?:src|href)=\")(?P<target>[^)\s#\"]+)(?P<anchor>#[^)\s\"]*)?(?=[)\"])")


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside `docs/` that a page links to."""
    waiting = [file for file in files.documentation_pages() if file.abs_src_path]
    while waiting:
        page = Path(str(waiting.pop().abs_src_path))
        for target in outside(page):
            if files.get_file_from_path(uri_of(target)) is None:
                file = File.generated(config, uri_of(target), abs_src_path=str(target))
                files.append(file)
                waiting += [file] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links that lead to another place on the site than in the repository."""
    source = Path(page.file.abs_src_path)
    here = PurePosixPath(page.file.src_uri).parent

    def rewritten(match: re.Match[str]) -> str:
        target = resolve(source, match["target"])
        if target is None:
            return match[0]
        link = Path(os.path.relpath(uri_of(target), here)).as_posix()
        if match["before"] != "](":  # HTML in Markdown is left alone by the site's builder
            link = link.removesuffix(".md") + ".html" * link.endswith(".md")
        return f"{match['before']}{link}{match['anchor'] or ''}"

    return LINK.sub(rewritten, markdown)


def outside(page: Path) -> Iterator[Path]:
    """Files of the repository outside `docs/` that `page` links to."""
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = resolve(page, match["target"])
        if target is not None and DOCS not in target.parents:
            yield target


def resolve(page: Path, link: str) -> Path | None:
    """The file of the repository that a link of `page` names, if it names one."""
    if "://" in link or link.startswith("mailto:"):
        return None
    target = Path(os.path.normpath(page.parent / link))
    return target if ROOT in target.parents and target.is_file() else None


def uri_of(target: Path) -> str:
    """Where a file of the repository lies on the site."""
    inside = DOCS in target.parents
    return (target.relative_to(DOCS) if inside else SHELF / target.relative_to(ROOT)).as_posix()
