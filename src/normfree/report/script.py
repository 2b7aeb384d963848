"""The page's one script: tooltips with the values under the pointer. The page is complete without it."""

import base64
import hashlib

SCRIPT = """
"use strict";
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip"; tip.hidden = true;
const make = (parent, name, text, style) => {
  const made = parent.appendChild(document.createElement(name));
  if (text !== undefined) made.textContent = text;
  if (style) made.className = style;
  return made;
};
const count = v => v.toLocaleString("en-US", {maximumFractionDigits: 4});
const short = v => Math.abs(v) >= 1e-3 && Math.abs(v) < 1e6 ? String(+v.toPrecision(4)) : v.toExponential(2);
const percent = v => (100 * v).toFixed(v && v < 0.001 ? 3 : 2) + " %";
function show(event, lines) {
  tip.replaceChildren();
  lines.forEach(([left, right, color], i) => {
    const line = make(tip, "div"), label = make(line, "span");
    if (color) make(label, "i", "", color);
    label.append(left);
    if (right !== undefined) make(line, "span", right);
  });
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), wide = document.documentElement.clientWidth;
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, wide - box.width - 6)) + "px";
  tip.style.top = Math.max(4, event.clientY - box.height - 14) + "px";
}
function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) { const m = (low + high) >> 1; if (points[m][0] < x) low = m; else high = m; }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}
for (const area of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(area.dataset.chart), line = make(area, "hr");
  line.hidden = true;
  area.addEventListener("pointermove", event => {
    const box = area.getBoundingClientRect(), width = chart.high - chart.low;
    const x = chart.low + width * (event.clientX - box.left) / box.width;
    const found = chart.series.map(one => [one, nearest(one.points, x)]);
    const at = found.map(f => f[1]).reduce((a, b) => Math.abs(a[0] - x) <= Math.abs(b[0] - x) ? a : b)[0];
    const near = found.filter(f => Math.abs(f[1][0] - at) <= 0.012 * width);
    line.style.left = 100 * (at - chart.low) / width + "%"; line.hidden = false;
    const head = chart.names.length ? chart.names[Math.round(at) - 1] : chart.unit + " " + count(at);
    const said = v => chart.fraction ? percent(v) : short(v);
    show(event, [[head], ...near.map(([one, p]) => [one.name, said(p[1]), one.color])]);
  });
  area.addEventListener("pointerleave", () => { line.hidden = tip.hidden = true; });
}
for (const field of document.querySelectorAll("[data-map]")) {
  const map = JSON.parse(field.dataset.map), cell = make(field, "b");
  const rows = map.values.length, columns = map.steps.length;
  cell.hidden = true;
  field.addEventListener("pointermove", event => {
    const box = field.getBoundingClientRect();
    const place = (at, from, size, n) => Math.max(0, Math.min(n - 1, Math.floor(n * (at - from) / size)));
    const r = place(event.clientY, box.top, box.height, rows), c = place(event.clientX, box.left, box.width, columns);
    const v = map.values[r][c], [a, b] = map.steps[c];
    Object.assign(cell.style, {left: 100 * c / columns + "%", top: 100 * r / rows + "%", width: 100 / columns + "%",
      height: 100 / rows + "%"});
    cell.hidden = false;
    const said = map.kind === "fraction" ? v => percent(v) + " of units clipped" : v => "ratio " + short(v);
    const steps = a === b ? "step " + count(a) : "steps " + count(a) + " to " + count(b);
    show(event, [[map.names[r]], [steps], [v === null ? "unknown" : said(v)]]);
  });
  field.addEventListener("pointerleave", () => { cell.hidden = tip.hidden = true; });
}
"""


def policy() -> str:
    """The content security policy: pictures inside the page, this script, and no connection to anywhere."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
