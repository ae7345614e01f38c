"""Pages of `xcnn.pages` as a browser reads them, what must hold for all of them, and hostile names."""

import base64
import dataclasses
import html.parser
import io
import re
from pathlib import Path

from PIL import Image

from xcnn.data import Dataset

__all__ = ["HOSTILE", "Page", "check", "hostile", "picture"]

VOID = {"br", "img", "meta"}

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "&amp;&lt;b&gt;",
    "\u202egnorw\u2066",
    "\x1b[2Jbell\x07\x00",
    "\u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627",
    "a" * 5000,
    "two\nlines\r\n",
    "]]></style><style>*{display:none}",
    "{{7*7}}",
)


class Page(html.parser.HTMLParser):
    """A page, parsed: every element must be closed, and nothing may be loaded."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text("utf-8")
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs), "an attribute twice"
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        for name, value in found.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert value.startswith("#" if "href" in name else "data:image/png;base64,")
                self.links += [value[1:]] if "href" in name else []
            assert "javascript:" not in (value or "").lower() or name in ("alt", "title", "aria-label")
        if tag == "img":
            assert found["alt"]
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video"}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self._table.append([])
        if tag == "table":
            self._table, self._caption = [], ""
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            assert self._caption
            assert len({len(row) for row in self._table}) == 1
            self.tables[self._caption] = self._table

    def handle_data(self, text):
        if "style" in self.open:
            return
        self.words.append(text)
        if self.open and {"td", "th"} & set(self.open):
            self._table[-1][-1] += text
        if self.open and self.open[-1] == "caption":
            self._caption += text

    @property
    def said(self) -> str:
        return " ".join("".join(self.words).split())


def check(path: Path) -> Page:
    """Parse a page, and check what holds for each."""
    page = Page(path)
    assert page.text.startswith('<!doctype html>\n<html lang="en">')
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)
    for found in re.findall(r"url\(([^)]*)\)", page.text):
        assert found[0] == "#"
        assert found[1:] in page.ids
    assert "@import" not in page.text
    policy = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    for tag, found in page.tags:
        if tag == "th":
            assert found["scope"] in ("row", "col")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page.text)
    return page


def hostile(restored):
    """Return a model whose classes, data set and origin have hostile names."""
    test = restored.test_set()
    found = dataclasses.replace(
        restored.checkpoint,
        classes=HOSTILE,
        dataset=HOSTILE[0],
        origin={"processor": HOSTILE[1], "python": HOSTILE[4], "arrays": 3, "images": HOSTILE},
        metrics={"epoch": 2, "val_loss": 1.5, HOSTILE[0]: HOSTILE[1]},
    )
    return dataclasses.replace(
        restored,
        checkpoint=found,
        dataset=HOSTILE[0],
        title=HOSTILE[0],
        load=lambda part, size: Dataset(test.x, test.y, HOSTILE, HOSTILE[0]),
    )


def picture(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
