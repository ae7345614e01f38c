"""Build pages of HTML: elements whose text is escaped by construction, tables, figures, and the page around them."""

import html
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xcnn.errors import printable

__all__ = [
    "MOST_ROWS",
    "Content",
    "Html",
    "Section",
    "bar",
    "code",
    "element",
    "figure",
    "folded",
    "listing",
    "more",
    "name",
    "note",
    "page",
    "table",
]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the browser may load for a page: nothing but what is written in it."""

_EMPTY = {"br", "img", "meta"}
_BLOCKS = {
    *("article", "body", "caption", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "footer", "h1", "h2"),
    *("h3", "head", "header", "html", "img", "li", "main", "meta", "nav", "ol", "p", "pre", "section", "style"),
    *("summary", "svg", "table", "tbody", "thead", "title", "tr", "ul"),
}
"""The elements after which the source goes on in a new line."""


MOST_ROWS = 30
"""The rows of the longest table that is not folded away."""

_LONGEST_TITLE = 1000
"""The longest name that is kept in full beside its begin and end."""


class Html(str):
    """Text that is HTML already. All other text is escaped where it becomes part of an element."""

    __slots__ = ()


Content = Any
"""What an element holds: `Html`, text or a number, a sequence of these, or None for nothing."""


def _inside(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Html):
        return content
    if isinstance(content, Iterable) and not isinstance(content, str):
        return "".join(map(_inside, content))
    return html.escape(printable(str(content)))


def element(tag: str, *content: Content, **attributes: Any) -> Html:
    """Return an element.

    Parameters
    ----------
    tag : its name.
    *content : what it holds; text is escaped, and its control characters are shown as escapes.
    **attributes : `aria_label` stands for `aria-label`, `class_` for `class`. Those that are None or False are left
        out, and True is one without a value.

    Examples
    --------
    >>> print(element("i", "1 < 2 ", element("b", "really"), class_="note", hidden=None))
    <i class="note">1 &lt; 2 <b>really</b></i>
    """
    given = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        given += f" {key.rstrip('_').replace('_', '-')}"
        given += "" if value is True else f'="{html.escape(printable(str(value)))}"'
    end = "\n" * (tag in _BLOCKS)
    return Html(f"<{tag}{given}>{end if tag in _EMPTY else f'{_inside(content)}</{tag}>{end}'}")


def name(text: object, longest: int = 60) -> Html:
    """Return a name that comes from a file, which may be written from right to left, apart from the text around it.

    Of a very long one the begin and the end are shown.
    """
    whole = str(text)
    if len(whole) <= longest:
        return element("bdi", whole)
    half = longest // 2
    return element("bdi", f"{whole[:half]} ... {whole[-half:]}", title=whole[:_LONGEST_TITLE])


def code(text: object) -> Html:
    """Return a name or a command as in a program."""
    return element("code", text)


def listing(text: str) -> Html:
    """Return a line to copy, which scrolls in its own box."""
    return element("pre", code(text), tabindex="0")


def more(summary: Content, *content: Content, **attributes: Any) -> Html:
    """Return content that is folded away below a line that opens it."""
    return element("details", element("summary", summary), content, **attributes)


def folded(content: Html, rows: int, kind: str) -> Html:
    """Return a table, folded away if it has many rows; `kind` names them."""
    return content if rows <= MOST_ROWS else more(f"All {rows:,} {kind}", content)


def note(*content: Content) -> Html:
    """Return a paragraph that stands out."""
    return element("p", *content, class_="note")


def bar(share: float, kind: str = "") -> Html:
    """Return a bar of a length from 0 to 1, which repeats a number beside it."""
    length = min(max(share, 0.0), 1.0)
    inner = element("span", style=f"width:{100 * length:.2f}%", class_=kind or None)
    return element("span", inner, class_="bar", aria_hidden="true")


def figure(content: Content, *caption: Content, **attributes: Any) -> Html:
    """Return pictures with a caption."""
    return element("figure", content, element("figcaption", caption), **attributes)


def table(
    caption: str,
    head: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    numbers: Collection[int] = (),
    class_: str | None = None,
) -> Html:
    """Return a table whose rows are named by their first cell. A wide one scrolls in a box of its own.

    Parameters
    ----------
    caption : what it shows.
    head : the names of the columns.
    rows : their cells; a cell that is an element `td` or `th` stays as it is.
    numbers : the columns of numbers, which are aligned to the right.
    """

    def cell(column: int, content: Content) -> Html:
        if isinstance(content, Html) and content.startswith(("<td", "<th")):
            return content
        place = "number" if column in numbers else None
        if column == 0:
            return element("th", content, scope="row", class_=place)
        return element("td", content, class_=place)

    names = [
        element("th", one, scope="col", class_="number" if column in numbers else None)
        for column, one in enumerate(head)
    ]
    body = [element("tr", [cell(*pair) for pair in enumerate(row)]) for row in rows]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", names)),
        element("tbody", body),
        class_=class_,
    )
    return element("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption)


class Section(NamedTuple):
    """A section of a page.

    Attributes
    ----------
    key : its id, to which the contents of the page refer.
    title : its heading.
    content : what is in it.
    listed : whether the contents of the page name it.
    """

    key: str
    title: str
    content: Content
    listed: bool = True


def page(title: str, lead: Content, sections: Sequence[Section], foot: Content) -> Html:
    """Return a page that needs nothing but itself: no file, no network, no script.

    Parameters
    ----------
    title : the heading, and the title of the window.
    lead : what stands below the heading.
    sections : the parts of the page, which are listed at its beginning.
    foot : what stands at the end.
    """
    style = Html(Path(__file__).with_name("style.css").read_text("utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html("\n"), style),
    )
    links = [element("li", element("a", one.title, href=f"#{one.key}")) for one in sections if one.listed]
    body = element(
        "body",
        element("header", element("h1", title), lead),
        element("nav", element("ul", links), aria_label="contents"),
        element(
            "main",
            [
                element("section", element("h2", one.title, id=one.key), one.content, aria_labelledby=one.key)
                for one in sections
            ],
        ),
        element("footer", foot),
    )
    return Html(f"<!doctype html>\n{element('html', head, body, lang='en')}")
