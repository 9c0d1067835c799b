"use strict";
// True and recovered pictures under a slider, and the examples that an attack finds best.

function image(number, words) {
  return make("img", { src: data.pictures[number], alt: words });
}

if ($("#gallery")) {
  const wall = $("#wall");
  const form = $("#gallery-controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  let share = 50;

  /** A pair: the true picture left of the cut, the recovered one right of it. */
  function card(pair, place) {
    const made = image(pair.found, `picture ${place}, recovered: ${pair.words}`);
    if (pair.truth === null) {
      return make("figure", {}, make("div", { class: "stack single" }, made), make("figcaption", { text: pair.words || `picture ${place}` }));
    }
    const stack = make("div", { class: "stack" }, image(pair.truth, `picture ${place}, true`), made);
    const slider = make("input", {
      type: "range", min: 0, max: 100, value: share, "aria-label": `Picture ${place}: share that shows the true one`,
      on: { input: () => cut(stack, slider) },
    });
    cut(stack, slider);
    const ends = make("div", { class: "ends", "aria-hidden": "true" }, make("span", { text: "true" }), make("span", { text: "recovered" }));
    return make("figure", {}, stack, slider, ends, make("figcaption", { text: pair.words }));
  }

  function cut(stack, slider) {
    stack.style.setProperty("--cut", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value}% true, ${100 - slider.value}% recovered`);
  }

  function show(number) {
    wall.replaceChildren(...data.walls[number].pairs.map((pair, place) => card(pair, place + 1)));
    run.textContent = data.walls[number].run;
  }

  const everyone = make("input", {
    type: "range", id: "cut-all", min: 0, max: 100, value: share,
    on: {
      input: () => {
        share = Number(everyone.value);
        for (const slider of wall.querySelectorAll("input")) {
          slider.value = share;
          slider.dispatchEvent(new Event("input"));
        }
      },
    },
  });
  const run = make("span", { class: "hash" });
  form.append(
    choice("wall-choice", capital(data.place), data.walls.map((one, number) => [String(number), one.label]), String(data.walls.length - 1), (value) => show(Number(value))),
    make("label", { text: "All at once", for: "cut-all" }, everyone),
    make("div", { class: "field" }, make("span", { text: "Run" }), run),
  );
  show(data.walls.length - 1);
}

if ($("#exposed")) {
  const wall = $("#exposed-wall");
  const form = $("#exposed-controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  const cells = [...new Set(data.exposed.map((one) => one.cell))];
  const attacks = [...new Set(data.exposed.map((one) => one.attack))];
  const pictured = data.exposed.find((one) => one.items.some(([, , picture]) => picture !== undefined));
  const state = { cell: cells.at(-1), attack: pictured?.attack ?? attacks[0] };

  function show() {
    const found = data.exposed.find((one) => one.cell === state.cell && one.attack === state.attack);
    const items = found?.items ?? [];
    const most = Math.max(...items.map(([, gap]) => gap), 1e-9);
    wall.replaceChildren(...items.map(([example, gap, picture, name, canary]) => {
      const label = name === undefined ? "" : `“${name}”${canary ? ", canary" : ""}`;
      const shown = (picture ?? null) === null
        ? make("div", { class: "nothing", text: "no picture kept" })
        : make("div", { class: "frame" }, image(picture, `example ${example} ${label}`));
      const bar = make("span", { class: "bar", style: `width: ${(100 * Math.max(gap, 0)) / most}%` });
      return make("figure", {}, shown, bar, make("figcaption", { text: `${number(gap, 3)} · no. ${example} ${label}` }));
    }));
    if (!items.length) wall.append(make("p", { class: "note", text: "This attack ranked nothing in this cell." }));
    run.textContent = found?.run ?? "";
  }

  function picked(field, value) {
    state[field] = value;
    show();
  }
  const run = make("span", { class: "hash" });
  form.append(
    choice("exposed-cell", "Cell", cells.map((one) => [one, one]), state.cell, (value) => picked("cell", value)),
    choice("exposed-attack", "Attack", attacks.map((one) => [one, one]), state.attack, (value) => picked("attack", value)),
    make("div", { class: "field" }, make("span", { text: "Run" }), run),
  );
  show();
}
