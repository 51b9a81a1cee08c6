// Choice of runs, sorting and filtering of tables, copying. The event "chosen" tells the figures to redraw.
"use strict";

document.body.classList.add("scripted");

const DATA = JSON.parse(document.getElementById("data").textContent);

/** Values that the reader has not chosen, by facet. */
const hidden = {};

/** Whether an item, whose properties are facets, is chosen; an item without a facet is not filtered by it. */
function isChosen(item) {
  return Object.entries(hidden).every(([facet, values]) => !item[facet] || !values.has(item[facet]));
}

function choose() {
  for (const field of document.querySelectorAll("#choose fieldset")) {
    const boxes = [...field.querySelectorAll("input")];
    hidden[field.dataset.facet] = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
  }
  document.querySelectorAll(".verdicts > li, .dots [data-rule]").forEach((each) => { each.hidden = !isChosen(each.dataset); });
  document.querySelectorAll(".one-setting").forEach((each) => { each.hidden = !each.querySelector("[data-rule]:not([hidden])"); });
  describeChoice();
  document.querySelectorAll(".table, #runs").forEach(filter);
  document.dispatchEvent(new Event("chosen"));
}

/** Say beside the head of the panel how much is chosen, because the panel is closed at first. */
function describeChoice() {
  const told = [...document.querySelectorAll("#choose fieldset")].map((field) => {
    const boxes = [...field.querySelectorAll("input")];
    const chosen = boxes.filter((box) => box.checked).length;
    const name = field.querySelector("legend").textContent.split(" (")[0];
    return chosen === boxes.length ? `all ${boxes.length} ${name}` : `${chosen} of ${boxes.length} ${name}`;
  });
  document.getElementById("chosen").textContent = told.length ? `(${told.join(", ")})` : "";
}

/** Show the chosen rows or runs that contain the typed text. */
function filter(place) {
  const text = (place.querySelector("input[type=search]")?.value ?? "").trim().toLowerCase();
  const rows = [...place.querySelectorAll("tbody tr, .run")];
  for (const row of rows) row.hidden = !isChosen(row.dataset) || !row.textContent.toLowerCase().includes(text);
  const shown = rows.filter((row) => !row.hidden).length;
  place.querySelector(".count").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
  for (const group of place.querySelectorAll(".rule-runs")) {
    group.hidden = !group.querySelector(".run:not([hidden])");
    if (text) group.open = true;
  }
}

/** Number at the start of a cell, or null if it starts with a word. */
function number(text) {
  const found = text.trim().match(/^[-+−]?\d[\d,]*\.?\d*(e[-+]?\d+)?/i);
  return found ? Number(found[0].replace("−", "-").replaceAll(",", "")) : null;
}

/** Order of two cells: numbers before words, words by the alphabet, and empty cells last in both directions. */
function compare(one, other, direction) {
  const [a, b] = [one, other].map((text) => text.trim());
  if (a === "-" || b === "-") return (a === "-") - (b === "-");
  const [x, y] = [number(a), number(b)];
  if (x !== null && y !== null) return direction * (x - y);
  if (x !== null || y !== null) return direction * ((x === null) - (y === null));
  return direction * a.localeCompare(b);
}

function sort(head) {
  const body = head.closest("table").querySelector("tbody");
  const column = [...head.parentNode.children].indexOf(head);
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const each of head.parentNode.children) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...body.rows];
  rows.sort((one, other) =>
    compare(one.cells[column].textContent, other.cells[column].textContent, ascending ? 1 : -1));
  body.append(...rows);
}

for (const head of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

/** Copy the text through the clipboard if the browser allows it for files, or else through a selection. */
async function copy(text, place) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(place);
    return document.execCommand("copy");
  }
}

for (const button of document.querySelectorAll(".copy")) {
  const name = button.textContent;
  button.addEventListener("click", async () => {
    const place = button.parentNode.querySelector("code");
    button.textContent = (await copy(place.textContent, place)) ? "Copied" : "Selected: press Ctrl-C to copy";
    setTimeout(() => { button.textContent = name; }, 2000);
  });
}

for (const input of document.querySelectorAll("input[type=search]")) {
  input.addEventListener("input", () => filter(input.closest(".table, #runs")));
}
for (const field of document.querySelectorAll("#choose fieldset")) {
  field.addEventListener("change", choose);
  field.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    field.querySelectorAll("input").forEach((box) => { box.checked = "all" in button.dataset; });
    choose();
  });
}

for (const button of document.querySelectorAll(".save")) {
  button.addEventListener("click", () => {
    const text = button.parentNode.querySelector("code").textContent;
    const link = Object.assign(document.createElement("a"), { download: "config.yaml" });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

/** Say below a table when its right part is out of sight. */
function hint() {
  for (const scroll of document.querySelectorAll(".scroll")) {
    scroll.parentNode.querySelector(".more").hidden = scroll.scrollLeft + scroll.clientWidth > scroll.scrollWidth - 4;
  }
}
addEventListener("resize", hint);
document.addEventListener("chosen", hint);
document.addEventListener("scroll", hint, { capture: true, passive: true });

/** Keep as much room above a section that is jumped to as the panel takes that stays at the top of the window. */
const panel = document.getElementById("choose");
new ResizeObserver(() => {
  const room = getComputedStyle(panel).position === "sticky" ? panel.offsetHeight + 8 : 0;
  document.documentElement.style.setProperty("--panel", `${room}px`);
}).observe(panel);
