"""The page's colours, on paper and in the dark: each is a variable of the page's style, for text and charts alike."""

from collections.abc import Mapping

PAPER, INK, MUTED, RULE, AXIS = "#fefefe", "#1b1f24", "#5b6470", "#dfe3e8", "#9aa3ad"
CROWD = "#c4cad0"

_IN_THE_DARK: Mapping[str, str] = {
    PAPER: "#14171b",
    INK: "#e8ebee",
    MUTED: "#a2abb5",
    RULE: "#2e353d",
    AXIS: "#6d7781",
    CROWD: "#4c545d",
    # Okabe and Ito's palette with additions; in the dark each is brighter in the same hue.
    "#0072b2": "#4ba8e6",
    "#d55e00": "#ff8b45",
    "#009e73": "#2fc796",
    "#56b4e9": "#a5dcff",
    "#8c510a": "#d09a5b",
    "#cc79a7": "#e8a0c8",
    "#e69f00": "#f5bd3d",
    "#7a5195": "#bd92dc",
    "#222222": "#f2f2f2",
    "#777777": "#a8a8a8",
    "#5e8c31": "#97c766",
    "#b07aa1": "#d4a6c8",
}


def themed(colour: str) -> str:
    """A colour as a variable of the page's style; one without a dark form, such as a heat map's, is unchanged."""
    return f"var({_name(colour.lower())})" if colour.lower() in _IN_THE_DARK else colour


def style_sheet() -> str:
    """The variables of all colours, for light and for dark screens."""
    light = " ".join(f"{_name(colour)}: {colour};" for colour in _IN_THE_DARK)
    dark = " ".join(f"{_name(colour)}: {other};" for colour, other in _IN_THE_DARK.items())
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _name(colour: str) -> str:
    return f"--c-{colour.removeprefix('#')}"
