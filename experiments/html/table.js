"use strict";
// Every measured row: filtered by words and by fields, sorted by any column, a page at a time.

const rowsTable = (() => {
  const FEW = 60; // a field with more values is found by words alone
  const all = Array.from({ length: data.count }, (_, row) => row);
  const state = { words: "", fields: {}, sort: null, down: false, page: 0, size: 25 };
  let order = all;

  const shown = columns
    .filter((column) => !column.plotted && column.name !== "low" && column.name !== "high")
    .flatMap((column) => (column.name === "value" && named.low ? [column, { name: "interval", head: "95% interval", kind: "interval" }] : [column]));

  function ranks(column) {
    column.ranks ??= (() => {
      const sorted = column.values.map((text, code) => [text, code]).sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }));
      const ranked = new Uint32Array(sorted.length);
      sorted.forEach(([, code], rank) => (ranked[code] = rank));
      return ranked;
    })();
    return column.ranks;
  }

  /** Numbers by size and texts by letters; rows without an entry come last, whichever way. */
  function sorted(rows) {
    if (state.sort === null) return rows;
    const column = named[state.sort === "interval" ? "low" : state.sort];
    const sign = state.down ? -1 : 1;
    if (column.kind === "text") {
      const rank = ranks(column);
      return rows.slice().sort((a, b) => sign * (rank[column.codes[a]] - rank[column.codes[b]]) || a - b);
    }
    const values = column.values;
    const end = column.missing === "∞" ? sign : 1;
    return rows.slice().sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return end * ((x === null) - (y === null)) || a - b;
      return sign * (x - y) || a - b;
    });
  }

  function filtered() {
    let rows = all;
    for (const [name, key] of Object.entries(state.fields)) {
      const column = named[name];
      rows = rows.filter((row) => column.key(row) === key);
    }
    for (const word of state.words.toLowerCase().split(/\s+/).filter(Boolean)) {
      const texts = columns.filter((column) => column.kind === "text");
      const hits = texts.map((column) => column.values.map((text) => text.toLowerCase().includes(word)));
      rows = rows.filter((row) => texts.some((column, number) => hits[number][column.codes[row]]));
    }
    return rows;
  }

  const table = $("#rows");
  const body = make("tbody");
  const heads = new Map();

  function head() {
    const line = make("tr");
    for (const column of shown) {
      const press = () => {
        const again = state.sort === column.name;
        if (again && state.down) Object.assign(state, { sort: null, down: false });
        else Object.assign(state, { sort: column.name, down: again });
        refresh();
      };
      const numeric = column.kind === "number" ? "number" : null;
      const made = make("th", { scope: "col", class: numeric, "aria-sort": "none" },
        make("button", { type: "button", text: column.head, on: { click: press } }));
      heads.set(column.name, made);
      line.append(made);
    }
    table.append(make("caption", { class: "note", hidden: true, text: "Every measured row" }), make("thead", {}, line), body);
  }

  function cell(column, row) {
    if (column.kind === "interval") return make("td", { class: "number", text: interval(row) });
    const text = column.name === "metric" ? data.metrics[at("metric", row)] : told(column.name, row);
    if (column.kind === "number") return make("td", { class: "number", text });
    const long = text.length > 34;
    return make("td", { class: column.name === "run" ? "hash" : column.name === "metric" ? "metric" : long ? "clip" : null, title: long ? text : null, text });
  }

  function draw() {
    const last = Math.max(0, Math.ceil(order.length / state.size) - 1);
    state.page = Math.min(Math.max(state.page, 0), last);
    const from = state.page * state.size;
    const page = order.slice(from, from + state.size);
    body.replaceChildren(...page.map((row) => make("tr", {}, ...shown.map((column) => cell(column, row)))));
    if (!page.length) body.append(make("tr", {}, make("td", { class: "empty", colspan: shown.length, text: "No row fits; clear a filter." })));
    for (const [name, made] of heads) {
      made.setAttribute("aria-sort", name !== state.sort ? "none" : state.down ? "descending" : "ascending");
    }
    const of = order.length === all.length ? "" : ` (of ${all.length.toLocaleString("en")})`;
    status.textContent = page.length
      ? `rows ${(from + 1).toLocaleString("en")}–${(from + page.length).toLocaleString("en")} of ${order.length.toLocaleString("en")}${of}`
      : `no rows${of}`;
    first.disabled = before.disabled = state.page === 0;
    next.disabled = end.disabled = state.page === last;
  }

  function refresh() {
    order = sorted(filtered());
    state.page = 0;
    draw();
  }

  function turn(words, label, to) {
    const go = () => ((state.page = to()), draw());
    return make("button", { type: "button", class: "plain", text: words, "aria-label": label, on: { click: go } });
  }
  const first = turn("«", "First page", () => 0);
  const before = turn("‹", "Page before", () => state.page - 1);
  const next = turn("›", "Next page", () => state.page + 1);
  const end = turn("»", "Last page", () => Infinity);
  const status = make("span", { id: "rows-status", role: "status" });
  const size = choice("page-size", "", [10, 25, 50, 100, 250].map((one) => [String(one), `${one} a page`]), "25", (value) => {
    state.size = Number(value);
    draw();
  });
  size.firstElementChild.setAttribute("aria-label", "Rows a page");
  const save = make("button", { type: "button", class: "plain", text: "Save these rows as CSV", on: { click: download } });
  $("#pager").append(first, before, next, end, status, size, save);

  function download() {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const line = (row) => columns.map((column) => quoted(String(at(column.name, row) ?? ""))).join(",");
    const text = [columns.map((column) => column.name).join(","), ...order.map(line), ""].join("\n");
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    make("a", { href: address, download: "rows.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  function filters() {
    const form = $("#filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    let waiting;
    const search = make("input", {
      type: "search", id: "words", autocomplete: "off", placeholder: "LiRA canary",
      on: { input: () => { clearTimeout(waiting); waiting = setTimeout(() => { state.words = search.value; refresh(); }, 120); } },
    });
    form.append(make("label", { text: "Words", for: "words" }, search));
    for (const column of columns) {
      if (column.remark || column.plotted || ["value", "low", "high", "ceiling", "knowledge"].includes(column.name)) continue;
      if (column.kind === "number" && !column.own) continue;
      const keys = distinct(column, all);
      if (keys.length < 2 || keys.length > FEW) continue;
      const words = (key) => (column.name === "metric" ? data.metrics[column.values[key]] : entry(column, key));
      const options = [["", "any"], ...keys.map((key, place) => [String(place), words(key)])];
      form.append(choice(`filter-${column.name}`, column.head, options, "", (value) => {
        if (value === "") delete state.fields[column.name];
        else state.fields[column.name] = keys[Number(value)];
        refresh();
      }));
    }
    const clear = () => {
      form.reset();
      Object.assign(state, { words: "", fields: {} });
      refresh();
    };
    form.append(make("button", { type: "button", class: "plain", text: "Clear", on: { click: clear } }));
  }

  head();
  filters();
  refresh();
})();
