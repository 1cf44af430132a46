"use strict";
// Charts in the colours of the page: Okabe and Ito's, which colour-blind people tell apart, and cividis.
const dark = matchMedia("(prefers-color-scheme: dark)");
const HUES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"];

function theme() {
  const [text, muted, line] = dark.matches ? ["#e4e7ec", "#a3abb8", "#323845"] : ["#1b2430", "#5a6675", "#dfe4ea"];
  const font = "system-ui, sans-serif";
  return {
    background: "transparent",
    font,
    view: {stroke: null},
    axis: {labelColor: muted, titleColor: text, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 500,
      labelFontSize: 12, titleFontSize: 12},
    legend: {labelColor: text, titleColor: text, orient: "bottom", direction: "horizontal", labelLimit: 260,
      labelFontSize: 12, symbolSize: 110},
    range: {category: [...HUES, text], heatmap: {scheme: "cividis"}},
    mark: {color: HUES[0]},
    bar: {color: HUES[0]}, line: {color: HUES[0]}, point: {color: HUES[0]}, rule: {color: text}, tick: {color: text},
    text: {color: text},
  };
}

const specs = JSON.parse(document.getElementById("specs").textContent);
const views = new Map();

// How many columns of a legend fit, by the longest of the names in it.
function columns(spec, width) {
  const layers = [spec, ...(spec.layer ?? [])].filter(layer => layer.encoding?.color?.field);
  const rows = [spec, ...(spec.layer ?? [])].flatMap(layer => layer.data?.values ?? []);
  const names = layers.flatMap(layer => rows.map(row => String(row[layer.encoding.color.field] ?? "")));
  const longest = Math.min(260, 40 + 7 * Math.max(0, ...names.map(name => name.length)));
  return Math.max(1, Math.floor((width - 60) / longest));
}

async function draw(id) {
  const place = document.getElementById(id);
  const spec = structuredClone(specs[id]);
  const config = theme();
  config.legend.columns = columns(spec, place.clientWidth);
  views.get(id)?.finalize();
  views.set(id, await vegaEmbed(place, spec, {
    ast: true,  // no code is made of text: the page's policy forbids it
    config,
    renderer: "svg",
    actions: {export: true, source: false, compiled: false, editor: false},
    tooltip: {theme: dark.matches ? "dark" : "light"},
    downloadFileName: "tdn_bench-" + id,
  }));
}

async function drawAll() {
  for (const id of Object.keys(specs)) await draw(id);
  document.documentElement.dataset.drawn = Object.keys(specs).length;
}

dark.addEventListener("change", drawAll);
// A chart in a folded part has no width until that is opened.
for (const fold of document.querySelectorAll("details.fold")) {
  fold.addEventListener("toggle", () => { if (fold.open) dispatchEvent(new Event("resize")); });
}
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details.fold")) fold.open = true; });
if (matchMedia("(max-width: 900px)").matches) document.querySelector("nav details").open = false;

// A link into a folded part opens it.
function open_target() {
  const target = document.getElementById(location.hash.slice(1));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", open_target);

// Tables: a column's button sorts by its numbers where it has some, else by its text; rows without one, and void ones, last.
function key(row, column) {
  const cell = row.cells[column];
  if ("value" in cell.dataset) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}

function sort(button) {
  const header = button.closest("th"), body = header.closest("table").tBodies[0];
  const up = header.ariaSort !== "ascending";
  for (const other of header.parentElement.cells) if (other.hasAttribute("aria-sort")) other.ariaSort = "none";
  header.ariaSort = up ? "ascending" : "descending";
  const keyed = [...body.rows].map(row => [key(row, header.cellIndex), row.classList.contains("void"), row]);
  const numeric = keyed.some(([k]) => typeof k === "number");
  keyed.sort(([a, a_void], [b, b_void]) => {
    if (a_void !== b_void) return a_void - b_void;
    if (a === null || b === null) return (a === null) - (b === null);
    const order = numeric && typeof a === typeof b && typeof a === "number" ? a - b
      : String(a).localeCompare(String(b), "en", {numeric: true});
    return up ? order : -order;
  });
  body.append(...keyed.map(([, , row]) => row));
  document.getElementById("said").textContent = `sorted by ${button.textContent}, ${header.ariaSort}`;
}

document.addEventListener("click", event => {
  const button = event.target.closest("th button");
  if (button) sort(button);
});

drawAll();
open_target();
