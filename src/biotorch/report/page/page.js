// Choosing runs, sorting and filtering tables, copying. What is chosen is told to the figures by the event "chosen".
"use strict";

document.body.classList.add("scripted");

const DATA = JSON.parse(document.getElementById("data").textContent);

/** What is not chosen, by facet. */
const hidden = {};

/** Whether something that has facets as properties is chosen; what lacks a facet is, whatever is chosen of it. */
function isChosen(item) {
  return Object.entries(hidden).every(([facet, values]) => !item[facet] || !values.has(item[facet]));
}

function choose() {
  for (const field of document.querySelectorAll("#choose fieldset")) {
    const boxes = [...field.querySelectorAll("input")];
    hidden[field.dataset.facet] = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
  }
  document.querySelectorAll(".verdicts > li").forEach((each) => { each.hidden = !isChosen(each.dataset); });
  document.querySelectorAll(".table, #runs").forEach(filter);
  document.dispatchEvent(new Event("chosen"));
}

/** Show the rows, or runs, that are chosen and have the text that was typed. */
function filter(place) {
  const text = place.querySelector("input[type=search]").value.trim().toLowerCase();
  const rows = [...place.querySelectorAll("tbody tr, .run")];
  for (const row of rows) row.hidden = !isChosen(row.dataset) || !row.textContent.toLowerCase().includes(text);
  const shown = rows.filter((row) => !row.hidden).length;
  place.querySelector(".count").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
}

/** The first number of a cell, or null where it starts with a word. */
function number(text) {
  const found = text.trim().match(/^[-+−]?\d[\d,]*\.?\d*(e[-+]?\d+)?/i);
  return found ? Number(found[0].replace("−", "-").replaceAll(",", "")) : null;
}

/** Numbers before words, words by the alphabet, and cells without a value last in both directions. */
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

for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

/** The text, by the clipboard where the browser has one for files, else by a selection. */
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
    button.textContent = (await copy(place.textContent, place)) ? "Copied" : "Selected: copy it by the keyboard";
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
if (matchMedia("(max-width: 40rem)").matches) document.getElementById("choose").open = false;
