"""A figure of matplotlib as an SVG element inside a page, the same bytes for the same numbers.

Text stays text: it takes the page's font, and can be searched and read aloud.
"""

import io
import re
import warnings
from html import escape

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure


def to_svg(figure: Figure, title: str) -> Markup:
    """A figure as an SVG element for a page: scalable, without dates, names of elements or resources elsewhere."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}), warnings.catch_warnings():
        # The page's font has the letters that matplotlib's own lacks; it only measures them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("<svg") :]
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
    inside = re.sub(r"<[^>]+>", lambda tag: _plain_tag(tag[0], referenced), drawing[drawing.index(">") + 1 :])
    width, height = figure.get_size_inches() * 72
    # The title is escaped here, all text inside by matplotlib.
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">{inside}')  # noqa: S704


def _plain_tag(tag: str, referenced: set[str]) -> str:
    """A tag of matplotlib's without what a page does not need: names that nothing refers to, fonts, long digits."""
    tag = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in referenced else "", tag)
    tag = re.sub(r" font-family: [^;\"]*;?", "", tag).replace("xlink:href", "href")
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(
        r"-?\d+\.\d{2,}",
        lambda number: f"{float(number[0]):.4g}" if abs(float(number[0])) < 10 else f"{float(number[0]):.1f}",
        tag,
    )
    return " ".join(tag.split())
