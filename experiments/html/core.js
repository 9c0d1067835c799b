"use strict";
// What the parts of the page share: its data, making elements, form controls, numbers in words, the light.

const $ = (selector, root = document) => root.querySelector(selector);
const data = JSON.parse($("#data").textContent);

/** An element with attributes (`text` is its text, `on` its listeners) and children. Text is never read as markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, call] of Object.entries(value)) made.addEventListener(event, call);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A labelled select; `options` are pairs of a value and its words. */
function choice(id, words, options, chosen, call) {
  const select = make("select", { id, on: { change: () => call(select.value) } });
  for (const [value, text] of options) select.append(new Option(text, value, false, value === chosen));
  return make("label", { text: words, for: id }, select);
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

/** A number with its noun: "1 number", "7 numbers". */
function counted(value, one, more) {
  return `${value.toLocaleString("en")} ${value === 1 ? one : more}`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// Columns

const columns = data.columns;
const named = Object.fromEntries(columns.map((column) => [column.name, column]));
for (const column of columns) {
  const held = unpacked(column.kind === "text" ? column.codes : column.numbers, column.lengths);
  if (column.kind === "text") column.codes = held;
  else column.values = held;
  column.key = (row) => held[row];
}

/** Each entry as often as its length says. */
function unpacked(entries, lengths) {
  if (!lengths) return entries;
  const found = new Array(data.count);
  let row = 0;
  entries.forEach((one, run) => { for (const end = row + lengths[run]; row < end; row++) found[row] = one; });
  return found;
}

/** What stands at a row: text, a number or null. */
function at(name, row) {
  const column = named[name];
  if (!column) return null;
  return column.kind === "text" ? column.values[column.codes[row]] : column.values[row];
}

/** The same, fit to be read. */
function told(name, row) {
  const value = at(name, row);
  if (named[name]?.kind === "text") return value;
  return value === null ? (named[name]?.missing ?? "") : number(value);
}

/** The interval of a row in words; empty where it has none. */
function interval(row) {
  const [low, high] = [at("low", row), at("high", row)];
  return low === null || high === null ? "" : `[${number(low)}, ${number(high)}]`;
}

/** Codes or numbers of a column among `rows`, each once, in the order of the page (numbers rise, none last). */
function distinct(column, rows) {
  const seen = new Set();
  for (const row of rows) seen.add(column.key(row));
  const found = [...seen];
  if (column.kind === "text") return found.sort((a, b) => a - b);
  return found.sort((a, b) => (a === null) - (b === null) || a - b);
}

function entry(column, key) {
  if (column.kind === "text") return column.values[key] || "—";
  return key === null ? column.missing || "—" : number(key);
}

// Light

const themed = []; // called when the light changes

function colour(name) {
  const probe = document.body.appendChild(make("span", { style: `color: var(--${name})` }));
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

$("#theme").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
  themed.forEach((call) => call());
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => themed.forEach((call) => call()));

// Where one is, and copying

const links = new Map([...document.querySelectorAll(".nav a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver(
  (seen) => {
    for (const one of seen) {
      if (!one.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(one.target.id)?.setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "-20% 0px -70% 0px" },
);
document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source); // where a page from disk may not write to the clipboard
      button.textContent = "Selected";
    }
  });
}
