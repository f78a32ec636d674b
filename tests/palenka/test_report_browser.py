"""The page in a browser: its policy lets its own script run, which sorts tables and tells what is pointed at."""

import base64
import hashlib
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from palenka.eval.results import ModelIdentity, Request, Results, SuiteResult, write_results
from palenka.eval.suites import SUITES
from palenka.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOSSES = {"a": 3.0, "b": 10.5, "c": 2.5}
PROBE = """
const table = document.querySelector("table");
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].innerText.trim()).join("");
const loss = [...table.tHead.rows[0].cells].find(cell => cell.innerText.startsWith("held-out"));
const told = [names()];
for (const _ of [1, 2]) { loss.querySelector("button").click(); told.push(names() + loss.ariaSort); }
const boxes = [...document.querySelectorAll("svg .tip")].map(part => part.getBoundingClientRect());
const box = boxes.find(each => each.width > 0);
const [clientX, clientY] = [box.x + box.width / 2, box.y + box.height / 2];
const under = document.elementFromPoint(clientX, clientY);
under.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
told.push(document.querySelector(".told").textContent);
told.push([...document.querySelectorAll("svg")].map(svg => getComputedStyle(svg).display).join(""));
told.push(document.body.scrollWidth <= document.body.clientWidth);
const dated = document.createElement("table");
const dates = ["2026-03-02", "–", "2025-12-31 23:59", "2026-03-01"];
for (const date of dates) dated.insertRow().insertCell().innerText = date;
document.body.append(dated);
order(dated, 0, false);
told.push([...dated.rows].map(row => row.cells[0].innerText).join());
const found = document.createElement("pre");
found.textContent = told.join("|");
document.body.append(found);
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page about three models that were measured on the same windows."""
    for name, level in LOSSES.items():
        ones = np.ones(40, dtype=np.int64)
        columns: dict[str, Any] = {
            "task": ["dev"] * 40,
            "index": range(40),
            "unit": [f"block {place}" for place in range(40)],
        }
        columns |= {"loss": level + np.linspace(-0.1, 0.1, 40), "tokens": ones, "words": ones, "bytes": ones}
        table = pa.table(columns)
        request = Request(suite="held_out", title=SUITES["held_out"].title, version=2, data="d", conditions={})
        result = SuiteResult(**dict(request), **dict(SUITES["held_out"].figures(table)))
        model = ModelIdentity(weights=name, config={})
        write_results(
            tmp_path / f"{name}.json", Results(name=name, model=model, parameters=1, suites=(result,)), [table]
        )
    write_report([tmp_path], tmp_path / "report.html")
    return tmp_path / "report.html"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("width", "shown"), [(1280, "inlinenone"), (500, "inlinenone"), (360, "noneblock")])
def test_a_heading_sorts_its_table_and_a_point_tells_its_model(page: Path, width: int, shown: str) -> None:
    html = page.read_text(encoding="utf-8")
    # The page's own policy stays; a probe could not run under it, so it is let in by what a test may do.
    policy = re.findall(r"script-src '([^']*)'", html)
    assert len(policy) == 1
    probed = page.with_name("probed.html")
    opened = html.replace(policy[0], f"{policy[0]}' 'sha256-{_hash(PROBE)}")
    # A window of chromium's has 500 pixels at least, so the body is made as narrow as a phone's.
    opened = opened.replace("</style>", f"body {{ max-width: {width}px; padding: 16px }}</style>")
    probed.write_text(opened.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    options += ["--window-size=1280,4000", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    dom = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120, check=True).stdout
    (found,) = re.findall(r"<pre>(.*?)</pre>", dom, flags=re.DOTALL)
    before, ascending, descending, told, displays, fits, dates = unescape(found).split("|")
    assert before == "abc"
    assert ascending == "cabascending"  # 10.5 is more than 3: as numbers, not as words
    assert descending == "bacdescending"
    assert re.fullmatch(r"a: 3 \(2\.9\d* to 3\.0\d*\), nats per token, with 95 % interval", told)
    assert displays.startswith(shown)
    assert fits == "true"
    assert dates == "2025-12-31 23:59,2026-03-01,2026-03-02,–"


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
