"""A figure of matplotlib as an SVG element inside a page, the same bytes for the same numbers.

Text stays text: it has the page's font, and can be searched and read aloud. Colours are the page's variables. An artist
whose gid begins with `TIP` becomes a group with the rest of its gid as a title, which browsers show.
"""

import io
import re
import warnings
from html import escape

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from palenka.report.colours import themed

TIP = "tip:"


def to_svg(figure: Figure, title: str, style: str) -> Markup:
    """A figure as an SVG element for a page: scalable, without dates, element names or external resources.

    Args:
        figure: drawn in a page's pixels, 72 to the inch.
        title: what it shows, for those who hear the page.
        style: class of the element.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title + style, "svg.fonttype": "none"}), warnings.catch_warnings():
        # matplotlib only measures the letters; those that its font lacks are in the page's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("<svg") :]
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
    inside = re.sub(r"<[^>]+>", lambda tag: _plain_tag(tag[0], referenced), drawing[drawing.index(">") + 1 :])
    width, height = figure.get_size_inches() * 72
    head = f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
    # The title is escaped here, all text inside by matplotlib.
    return Markup(head + inside)  # noqa: S704


def _plain_tag(tag: str, referenced: set[str]) -> str:
    """A tag of matplotlib without unused names, fonts and long digits."""
    told = re.search(rf' id="{TIP}([^"]*)"', tag)
    tag = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in referenced else "", tag)
    tag = re.sub(r" font-family: [^;\"]*;?", "", tag).replace("xlink:href", "href")
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda colour: themed(colour[0]), tag)
    tag = re.sub(
        r"-?\d+\.\d{2,}",
        lambda number: f"{float(number[0]):.4g}" if abs(float(number[0])) < 10 else f"{float(number[0]):.1f}",
        tag,
    )
    tag = " ".join(tag.split())
    # An attribute's escaped text is also valid as an element's text.
    return f'<g class="tip"><title>{told[1]}</title>' if told else tag
