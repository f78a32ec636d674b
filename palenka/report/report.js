"use strict";
// A click on a heading sorts its table; pointing at a part of a chart tells what it is. Without this the page says the same.

// A date sorts as text: as a number it would be its year.
const number = text => (/^\d{4}-\d\d-\d\d/.test(text) ? NaN : parseFloat(text.replace(/,/g, "").replace("−", "-")));

function order(table, column, descending) {
  const body = table.tBodies[0];
  const fixed = [...body.rows].filter(row => row.classList.contains("all"));
  const rows = [...body.rows].filter(row => !row.classList.contains("all"));
  const key = row => row.cells[column].innerText.trim();
  const numbers = rows.filter(row => !isNaN(number(key(row)))).length * 2 > rows.length;
  const known = row => (numbers ? !isNaN(number(key(row))) : key(row) !== "–");
  const compare = (a, b) => (numbers ? number(key(a)) - number(key(b)) : key(a).localeCompare(key(b)));
  rows.sort((a, b) => known(b) - known(a) || (known(a) ? compare(a, b) * (descending ? -1 : 1) : 0));
  body.append(...fixed, ...rows);
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies.length !== 1 || table.tBodies[0].rows.length < 2) continue;
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.ariaSort === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      order(table, column, descending);
    });
  });
}

const tip = document.createElement("div");
tip.className = "told";
tip.hidden = true;
document.body.append(tip);
const near = [[0, 0], ...[4, 8].flatMap(r => [[r, 0], [-r, 0], [0, r], [0, -r], [r, r], [-r, -r], [r, -r], [-r, r]])];
let pointed = null;

function tell(event) {
  const inChart = event.target instanceof Element && event.target.closest("figure");
  const places = inChart ? near : [];
  const found = places.map(([x, y]) => document.elementFromPoint(event.clientX + x, event.clientY + y)?.closest(".tip"));
  const part = found.find(element => element) ?? null;
  if (part !== pointed) {
    pointed?.classList.remove("pointed");
    part?.classList.add("pointed");
    pointed = part;
  }
  tip.hidden = !part;
  if (!part) return;
  tip.textContent = part.dataset.told ??= part.querySelector("title").textContent;
  part.querySelector("title")?.remove(); // the browser would show it too
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(8, event.clientY - box.height - 12)}px`;
}

document.addEventListener("pointermove", tell);
document.addEventListener("pointerdown", tell);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
