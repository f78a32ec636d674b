"""The picture of README: how far each model of the demo is from its control on the same held-out text.

$ palenka demo && python -m benchmarks.demo_picture runs/demo --out docs/demo.svg
"""

import argparse
import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from palenka.eval.compare import compare_suite
from palenka.ground.files import write_whole

ROWS = {
    "gpt2": "teacher: GPT-2",
    "llama": "teacher: Llama",
    "distilled": "student of their logits",
    "supervised": "student of logits and hidden states",
}
INK, AXIS, TEACHER, STUDENT = "#1b1f24", "#9aa3ad", "#777777", "#0072b2"


def picture(demo: Path) -> str:
    """The picture as SVG text, from the measures of a demo's folder."""
    mpl.rcParams |= {"svg.hashsalt": "palenka", "font.family": "sans-serif", "font.size": 11}
    figure = Figure(figsize=(9, 2.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for place, name in enumerate(ROWS):
        row = compare_suite(demo / f"measures/{name}.json", demo / "measures/control.json", "held_out")
        low, high = row["interval"]
        colour = TEACHER if ROWS[name].startswith("teacher") else STUDENT
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(row["difference"], place, "o", color=colour, markersize=7)
        axes.annotate(
            f"{row['difference']:+.3f}".replace("-", "−"),
            (high, place),
            (8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.axvline(0, color=AXIS, linestyle=(0, (3, 2)))
    axes.annotate("control: no teachers", (0, -0.75), (-6, 0), textcoords="offset points", ha="right", va="center")
    axes.set_ylim(len(ROWS) - 0.5, -1.1)
    axes.set_yticks(range(len(ROWS)), list(ROWS.values()))
    axes.set_xlabel("held-out cross-entropy minus that of the control, nats per token (left is better)")
    axes.tick_params(length=0, colors=INK)
    axes.margins(x=0.12)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.svg"), help="file of the picture")
    arguments = parser.parse_args()
    write_whole(arguments.out, picture(arguments.demo))


if __name__ == "__main__":
    main()
