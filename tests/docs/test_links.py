"""Links between pages lead somewhere, headings included."""

from __future__ import annotations

import re
from pathlib import Path

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(prose)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def test_links_resolve(document: Path) -> None:
    for link in LINK.findall(without_code(document.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{link}: no such heading"


def test_images_exist(document: Path) -> None:
    for link in IMAGE.findall(without_code(document.read_text(encoding="utf-8"))):
        assert (document.parent / link).is_file(), f"{link}: no such picture"


def test_every_page_can_be_reached_from_the_index(root: Path) -> None:
    docs = root / "docs"
    linked = LINK.findall(without_code((docs / "index.md").read_text(encoding="utf-8")))
    reached = {(docs / link).resolve() for link in linked if not link.startswith("https://")}
    assert {page for page in docs.rglob("*.md") if page.name != "index.md"} <= reached


def test_every_page_has_one_title(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
