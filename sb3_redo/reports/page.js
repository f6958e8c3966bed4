"use strict";
// Each figure is an SVG followed by what lies in its axes, in data units: reports/pictures.py writes both.
const hidden = new Set();
const tip = document.createElement("div");
tip.id = "tip";

function shorten(value, percent) {
  if (percent) return (100 * value).toPrecision(3) + " %";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function element(parent, name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return parent.appendChild(made);
}

// From data units to those of the SVG, and back along the horizontal axis.
function scales(panel) {
  const [left, top, width, height] = panel.box;
  const along = panel.log ? Math.log : (x) => x;
  const [low, high] = panel.x.map(along);
  const [bottom, ceiling] = panel.y || [0, 1];
  return {
    x: (x) => left + (width * (along(x) - low)) / (high - low),
    y: (y) => top + (height * (ceiling - y)) / (ceiling - bottom),
    inverse: (x) => low + ((high - low) * (x - left)) / width,
    along,
  };
}

function nearest(numbers, wanted, along) {
  let best = 0;
  numbers.forEach((x, i) => {
    if (Math.abs(along(x) - wanted) < Math.abs(along(numbers[best]) - wanted)) best = i;
  });
  return best;
}

function drawSeeds(svg, panels) {
  panels.forEach((panel, number) => {
    if (!panel.curves) return;
    const { x, y } = scales(panel);
    const clip = "axes-" + number + "-" + Math.random().toString(36).slice(2);
    const [left, top, width, height] = panel.box;
    element(element(svg, "clipPath", { id: clip }), "rect", { x: left, y: top, width, height });
    const group = element(svg, "g", { class: "seeds", "clip-path": "url(#" + clip + ")" });
    for (const curve of panel.curves) {
      for (const seed of curve.seeds || []) {
        const points = seed.flatMap((value, i) => (value === null ? [] : [x(curve.at[i]) + "," + y(value)]));
        element(group, "polyline", { points: points.join(" "), class: curve.key, stroke: curve.colour });
      }
    }
  });
}

function tellCurves(panel, wanted, along) {
  const rows = panel.curves.filter((curve) => !hidden.has(curve.key)).map((curve) => {
    const i = nearest(curve.at, wanted, along);
    const told = (name) => (curve[name] && curve[name][i] !== null ? shorten(curve[name][i], panel.percent) : null);
    const range = told("low") === null ? "" : " [" + told("low") + ", " + told("high") + "]";
    const runs = curve.runs ? ", n = " + curve.runs[i] : "";
    return { at: curve.at[i], value: curve.value[i], words: curve.name + ": " + told("value") + range + runs };
  });
  rows.sort((a, b) => b.value - a.value);
  return rows.length ? [shorten(rows[0].at, false), ...rows.map((row) => row.words)] : [];
}

function tellCells(panel, wanted, down) {
  const row = panel.cells[Math.min(panel.cells.length - 1, Math.floor(down * panel.cells.length))];
  const i = nearest(row.at, wanted, (x) => x);
  return [shorten(row.at[i], false), row.name + ": " + shorten(row.value[i], true)];
}

function tell(event, svg, panels, rule) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const panel = panels.find(({ box: [left, top, width, height] }) =>
    point.x >= left && point.x <= left + width && point.y >= top && point.y <= top + height);
  let lines = [];
  if (panel) {
    const { inverse, along } = scales(panel);
    const [, top, , height] = panel.box;
    const wanted = inverse(point.x);
    lines = panel.curves ? tellCurves(panel, wanted, along) : tellCells(panel, wanted, (point.y - top) / height);
    for (const [key, value] of [["x1", point.x], ["x2", point.x], ["y1", top], ["y2", top + height]]) {
      rule.setAttribute(key, value);
    }
  }
  rule.style.display = tip.style.display = lines.length ? "" : "none";
  tip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(0, Math.min(event.clientX + 16, room)) + window.scrollX + "px";
  tip.style.top = event.clientY + 16 + window.scrollY + "px";
}

addEventListener("DOMContentLoaded", () => {
  document.body.append(tip);
  tip.style.display = "none";
  const figures = [...document.querySelectorAll("figure")].map((figure) => {
    const svg = figure.querySelector("svg");
    const panels = JSON.parse(figure.querySelector("script").textContent);
    const rule = element(svg, "line", { class: "rule" });
    svg.addEventListener("pointermove", (event) => tell(event, svg, panels, rule));
    svg.addEventListener("pointerleave", () => { rule.style.display = tip.style.display = "none"; });
    return { svg, panels };
  });
  const show = () => {
    for (const box of document.querySelectorAll("[data-of]")) {
      const key = box.dataset.of;
      box.checked ? hidden.delete(key) : hidden.add(key);
      for (const mark of document.getElementsByClassName(key)) mark.style.display = box.checked ? "" : "none";
    }
  };
  document.addEventListener("change", (event) => {
    if (event.target.id === "seeds") {
      if (event.target.checked && !document.querySelector(".seeds")) {
        for (const { svg, panels } of figures) drawSeeds(svg, panels);
      }
      document.body.classList.toggle("with-seeds", event.target.checked);
    }
    show();
  });
  show();
});
