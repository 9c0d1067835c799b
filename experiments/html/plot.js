"use strict";
// Any metric against ε or another field: a series for each combination of what is not chosen, with its intervals.

const leakagePlot = (() => {
  // Okabe and Ito's palette, as in the figures; blind baselines are grey.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
  const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const CALM = 10; // so many series are shown at first
  const MOST = 48;
  const FAVOURED = ["by", "attack", "auditor", "case", "scheme", "kind", "variant", "defense", "defence"];
  const NOT_DIMENSIONS = ["metric", "value", "low", "high", "ceiling", "setting"];

  const all = Array.from({ length: data.count }, (_, row) => row).filter((row) => at("value", row) !== null);
  const metrics = distinct(named.metric, all);
  const dimensions = columns.filter(
    (column) => !column.remark && !column.fact && !NOT_DIMENSIONS.includes(column.name) && (column.kind === "text" || column.own),
  );
  const state = { metric: metrics[0], x: data.x, by: "", fields: {}, hidden: new Set(), order: [], log: false };
  let rows = []; // those of the metric

  const isBlind = (text) => /^blind/.test(text);
  const varied = (column, among) => distinct(column, among).length > 1;

  /** Whether every key of `x` goes with one key of `column` alone: then x already tells the two apart. */
  function follows(column, x, among) {
    const seen = new Map();
    for (const row of among) {
      const [key, value] = [x.key(row), column.key(row)];
      if (seen.has(key) && seen.get(key) !== value) return false;
      seen.set(key, value);
    }
    return true;
  }

  function axes() {
    const numeric = (column) => column.kind === "number" && !["value", "low", "high", "ceiling"].includes(column.name);
    const fit = columns.filter((column) => !column.remark && column.name !== "metric" && (numeric(column) || column.kind === "text"));
    return fit.filter((column) => varied(column, rows) && distinct(column, rows).length <= 200);
  }

  function commonest(column, among) {
    const counts = new Map();
    for (const row of among) counts.set(column.key(row), (counts.get(column.key(row)) ?? 0) + 1);
    return [...counts].reduce((most, one) => (one[1] > most[1] ? one : most))[0];
  }

  function chosen() {
    return rows.filter((row) => Object.entries(state.fields).every(([name, key]) => named[name].key(row) === key));
  }

  /** The fields that tell series apart: those that vary, and that x does not settle. */
  function splitting(among) {
    const x = named[state.x];
    return dimensions.filter(
      (column) => column !== x && column.name !== state.by && varied(column, among) && !follows(column, x, among),
    );
  }

  function grouped(among) {
    const by = named[state.by];
    const split = splitting(among);
    const found = new Map();
    for (const row of among) {
      const base = by ? by.key(row) : 0;
      if (state.hidden.has(base)) continue;
      const blind = Boolean(by) && isBlind(String(entry(by, base)));
      // A baseline that never looks at the model is the same whatever attack it is set beside.
      const own = split.filter((column) => !(blind && column.name === "attack"));
      const key = JSON.stringify([base, ...own.map((column) => column.key(row))]);
      if (!found.has(key)) found.set(key, { base, own, rows: [], blind });
      found.get(key).rows.push(row);
    }
    const order = by ? distinct(by, among) : [0];
    return named_(by, [...found.values()].sort((a, b) => a.blind - b.blind || order.indexOf(a.base) - order.indexOf(b.base)));
  }

  /** Each series gets a name: its own key, and of the other fields those that tell it from its namesakes. */
  function named_(by, found) {
    for (const one of found) {
      const mates = found.filter((other) => other.base === one.base);
      const telling = one.own.filter((column) => new Set(mates.map((other) => column.key(other.rows[0]))).size > 1);
      const parts = telling.map((column) => (column.kind === "text" ? entry(column, column.key(one.rows[0])) : `${column.head} ${entry(column, column.key(one.rows[0]))}`));
      one.name = [...(by ? [entry(by, one.base)] : []), ...parts].join(" · ") || data.metrics[entry(named.metric, state.metric)];
      one.mate = mates.indexOf(one);
    }
    return found;
  }

  // What is shown at first

  function startMetric() {
    rows = all.filter((row) => named.metric.key(row) === state.metric);
    const options = axes();
    if (!options.some((column) => column.name === state.x)) {
      const wanted = [data.x, "epsilon", "variant", "setting"];
      state.x = wanted.find((name) => options.some((column) => column.name === name)) ?? options[0]?.name ?? "metric";
    }
    startBy();
  }

  function startBy() {
    const varying = dimensions.filter((column) => column.name !== state.x && varied(column, rows));
    const free = varying.filter((column) => !follows(column, named[state.x], rows));
    const possible = free.length ? free : varying;
    if (!possible.some((column) => column.name === state.by)) {
      state.by = FAVOURED.find((name) => possible.some((column) => column.name === name)) ?? possible[0]?.name ?? "";
    }
    state.fields = {};
    state.hidden = new Set();
    const group = named.group && possible.includes(named.group) && state.by !== "group" ? named.group : null;
    if (group) {
      const groups = distinct(group, rows);
      state.fields.group = groups.find((key) => entry(group, key) === "canary") ?? groups[0];
    }
    const by = named[state.by];
    state.order = by ? telling(by) : [];
    const whole = by === named.group ? state.order.filter((key) => ["canary", "ordinary"].includes(entry(by, key))) : [];
    state.order.sort((a, b) => whole.includes(b) - whole.includes(a)); // all examples before one class or client
    state.order.slice(whole.length || COLOURS.length).forEach((key) => state.hidden.add(key));
    calm(by);
  }

  /** The keys of `by`, blind ones aside: the highest value of each view first, then the second ones, and so on. */
  function telling(by) {
    const best = new Map();
    for (const row of chosen()) best.set(by.key(row), Math.max(best.get(by.key(row)) ?? -Infinity, at("value", row)));
    const view = new Map(rows.map((row) => [by.key(row), at("view", row)]));
    const open = distinct(by, rows).filter((key) => !isBlind(String(entry(by, key))) && best.has(key));
    open.sort((a, b) => best.get(b) - best.get(a));
    const seen = new Map();
    const turns = new Map(open.map((key) => {
      seen.set(view.get(key), (seen.get(view.get(key)) ?? 0) + 1);
      return [key, seen.get(view.get(key))];
    }));
    return open.sort((a, b) => turns.get(a) - turns.get(b));
  }

  /** Fixes fields until few series are left: each time the one whose commonest value leaves the most colours. */
  function calm(by) {
    while (grouped(chosen()).length > CALM) {
      const visible = chosen().filter((row) => !by || !state.hidden.has(by.key(row)));
      const options = splitting(visible).reverse().map((column) => {
        const key = commonest(column, visible);
        const left = visible.filter((row) => column.key(row) === key);
        return { column, key, colours: by ? distinct(by, left).length : 1 };
      });
      if (!options.length) return;
      const best = options.reduce((most, one) => (one.colours > most.colours ? one : most));
      state.fields[best.column.name] = best.key;
    }
  }

  // Controls

  const form = $("#leakage-controls");
  form.addEventListener("submit", (event) => event.preventDefault());

  function controls() {
    const focused = document.activeElement?.id;
    form.replaceChildren();
    const pick = (id, words, keys, text, now, call) => {
      const options = keys.map((key, place) => [String(place), text(key)]);
      form.append(choice(id, words, options, String(keys.indexOf(now)), (value) => { call(keys[Number(value)]); renew(); }));
    };
    pick("plot-metric", "Metric", metrics, (key) => data.metrics[entry(named.metric, key)], state.metric, (key) => { state.metric = key; startMetric(); });
    const options = axes().map((column) => column.name);
    if (options.length > 1) pick("plot-x", "Against", options, (name) => named[name].head, state.x, (name) => { state.x = name; startBy(); });
    const bys = dimensions.filter((column) => column.name !== state.x && varied(column, rows)).map((column) => column.name);
    if (bys.length > 1) pick("plot-by", "A colour each", bys, (name) => capital(named[name].head), state.by, (name) => { state.by = name; startBy(); });
    for (const column of dimensions) {
      if (column.name === state.x || column.name === state.by || !varied(column, rows)) continue;
      if (column.own && named[state.x].own && follows(column, named[state.x], rows)) continue;
      if (distinct(column, rows).length > 200) continue;
      const keys = [undefined, ...distinct(column, rows)];
      pick(`plot-${column.name}`, capital(column.head), keys, (key) => (key === undefined ? "all" : entry(column, key)), state.fields[column.name], (key) => {
        if (key === undefined) delete state.fields[column.name];
        else state.fields[column.name] = key;
      });
    }
    const scale = [["no", "linear"], ["yes", "logarithmic"]];
    form.append(choice("plot-scale", "Upright axis", scale, state.log ? "yes" : "no", (value) => { state.log = value === "yes"; draw(); }));
    chips();
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  /** A box for each key of the field that has the colours; it doubles as the plot's legend. */
  function chips() {
    const by = named[state.by];
    const box = $("#series");
    $("#series-legend").textContent = by ? `Which ${by.head} is shown` : "";
    if (!by) return box.replaceChildren();
    const here = new Set(chosen().map(by.key));
    const blind = (key) => isBlind(String(entry(by, key)));
    const keys = distinct(by, rows).filter((key) => here.has(key)).sort((a, b) => blind(a) - blind(b));
    const made = keys.map((key, place) => {
      const input = make("input", {
        type: "checkbox", id: `series-${place}`, checked: !state.hidden.has(key),
        on: { change: () => { input.checked ? state.hidden.delete(key) : state.hidden.add(key); draw(); } },
      });
      return make("label", { for: `series-${place}` }, input, make("i", { style: `color: ${paint(key)}`, "aria-hidden": "true" }), entry(by, key));
    });
    const every = (hidden) => () => { keys.forEach((key) => (hidden ? state.hidden.add(key) : state.hidden.delete(key))); renew(); };
    if (keys.length > 3) {
      made.push(make("button", { type: "button", class: "plain", id: "series-all", text: "All", on: { click: every(false) } }));
      made.push(make("button", { type: "button", class: "plain", id: "series-none", text: "None", on: { click: every(true) } }));
    }
    box.replaceChildren(...made);
  }

  function renew() {
    controls();
    draw();
  }

  /** The place of a key among those that have a colour of their own; below 0 for a blind baseline. */
  function place(key) {
    const by = named[state.by];
    if (!by) return 0;
    if (isBlind(String(entry(by, key)))) return -1;
    if (!state.order.includes(key)) state.order.push(key);
    return state.order.indexOf(key);
  }

  function paint(key) {
    const spot = place(key);
    return spot < 0 ? "#8a8a90" : COLOURS[spot % COLOURS.length];
  }

  // The plot

  /** What hovering over a point says. */
  function card(row, name) {
    const x = named[state.x];
    const ceiling = at("ceiling", row);
    const lines = [
      `<b>${escaped(number(at("value", row)))}</b> ${escaped(interval(row))}`,
      escaped(name),
      `${escaped(x.head)} = ${escaped(cut(told(x.name, row) || x.missing || "—", 60))}`,
      ...["view", "group", "variant"].filter((field) => named[field] && field !== state.x && told(field, row)).map((field) => `${field} ${escaped(cut(told(field, row), 60))}`),
      ...(ceiling === null ? [] : [`at most ${number(ceiling)}`]),
      ...(told("note", row) ? [escaped(cut(told("note", row), 70))] : []),
      ...(at("run", row) ? [`run ${escaped(at("run", row))}`] : []),
    ];
    return lines.join("<br>");
  }

  function trace(one, index, count, where) {
    const numeric = named[state.x].kind === "number";
    const shift = (index - (count - 1) / 2) * Math.min((numeric ? 0.22 : 0.7) * where.step / Math.max(count, 1), where.span * 0.02);
    const spot = (row) => where.spots.get(named[state.x].key(row));
    const ordered = one.rows.slice().sort((a, b) => spot(a) - spot(b));
    const single = new Set(ordered.map(spot)).size === ordered.length;
    const joined = ordered.filter((row) => named[state.x].key(row) !== null);
    const color = paint(one.base);
    const round = Math.max(0, Math.floor(place(one.base) / COLOURS.length)) + one.mate;
    const bar = (row, end, sign) => (at(end, row) === null ? 0 : Math.max(0, sign * (at(end, row) - at("value", row))));
    const points = {
      type: "scatter", mode: "markers", name: escaped(cut(one.name, 60)), legendgroup: String(index), showlegend: true,
      x: ordered.map((row) => spot(row) + shift), y: ordered.map((row) => at("value", row)),
      text: ordered.map((row) => card(row, one.name)), hovertemplate: "%{text}<extra></extra>",
      marker: { color, size: one.blind ? 6 : 8, symbol: one.blind ? "x-thin-open" : SYMBOLS[round % SYMBOLS.length], line: { width: one.blind ? 1.5 : 0 } },
      error_y: {
        type: "data", symmetric: false, array: ordered.map((row) => bar(row, "high", 1)), arrayminus: ordered.map((row) => bar(row, "low", -1)),
        thickness: 1.2, width: 2, color,
      },
    };
    const line = numeric && single && joined.length > 1 ? [{
      type: "scatter", mode: "lines", x: joined.map((row) => spot(row) + shift), y: joined.map((row) => at("value", row)),
      line: { color, width: 1.6, dash: one.blind ? "dot" : DASHES[round % DASHES.length] }, hoverinfo: "skip", showlegend: false, legendgroup: String(index),
    }] : [];
    return [...line, points];
  }

  /** A line through the largest `field` at each x: the most that is possible there. */
  function limit(field, name, among, where, dash) {
    const most = new Map();
    for (const row of among) {
      const [value, spot] = [at(field, row), where.spots.get(named[state.x].key(row))];
      if (value !== null && value > (most.get(spot) ?? -Infinity)) most.set(spot, value);
    }
    if (!most.size) return [];
    const spots = [...most.keys()].sort((a, b) => a - b);
    return [{
      type: "scatter", mode: spots.length > 1 && named[state.x].kind === "number" ? "lines+markers" : "markers", name, showlegend: false, x: spots, y: spots.map((spot) => most.get(spot)),
      line: { color: colour("ink"), width: 1.3, dash }, marker: { symbol: "line-ew-open", size: 11, color: colour("ink") },
      text: spots.map((spot) => `${name}<br><b>${number(most.get(spot))}</b>`), hovertemplate: "%{text}<extra></extra>",
    }];
  }

  /** The words beside such a line, where it is lowest on the left. */
  function called(one) {
    const spot = Math.min(1, one.x.length - 1);
    const y = state.log ? Math.log10(one.y[spot]) : one.y[spot];
    return { x: one.x[spot], y, text: one.name, showarrow: false, xanchor: "left", yanchor: "top", xshift: 8, yshift: -4, font: { size: 11, color: colour("soft") } };
  }

  /** What it costs: test accuracy below, on the same axis; nothing where it is not measured or is the metric itself. */
  function utility(where) {
    const metric = named.metric.values.indexOf("accuracy");
    if (metric < 0 || metric === state.metric || !named.question) return [];
    const fields = Object.entries(state.fields).filter(([name]) => named[name].own);
    const found = all.filter((row) => named.metric.codes[row] === metric && where.spots.has(named[state.x].key(row)) && fields.every(([name, key]) => named[name].key(row) === key));
    if (!found.length) return [];
    const spot = (row) => where.spots.get(named[state.x].key(row));
    return [{
      type: "scatter", mode: "markers", name: "test accuracy", showlegend: false, yaxis: "y2", x: found.map(spot), y: found.map((row) => at("value", row)),
      text: found.map((row) => card(row, "test accuracy")), hovertemplate: "%{text}<extra></extra>", marker: { color: colour("soft"), size: 6 },
      error_y: {
        type: "data", symmetric: false, array: found.map((row) => Math.max(0, at("high", row) - at("value", row))),
        arrayminus: found.map((row) => Math.max(0, at("value", row) - at("low", row))), thickness: 1, width: 2, color: colour("soft"),
      },
    }];
  }

  function layout(where, below, legend, title) {
    const [ink, soft, grid] = [colour("ink"), colour("soft"), colour("grid")];
    const phone = innerWidth < 640;
    const few = where.ticks.length <= (phone ? 3 : 8);
    const upright = named[state.x].kind === "text" && !few; // slanted, the last ones would leave the page and be hidden
    const drawnHeight = (phone ? 400 : 470) + (below ? 70 : 0) + (upright ? 120 : 0);
    $("#plot").style.height = `${drawnHeight + 14}px`;
    const chance = data.chance[entry(named.metric, state.metric)];
    const label = (text) => (few ? wrapped(text, phone ? 14 : 22) : escaped(cut(text, 32)));
    const letters = upright ? Math.max(8, Math.min(12, ($("#plot").clientWidth - 90) / where.ticks.length)) : 12;
    const margin = Math.max(where.step * (named[state.x].kind === "text" ? 0.55 : 0.3), where.span * 0.04);
    const main = { title: { text: escaped(title), standoff: 8 }, gridcolor: grid, zeroline: false, type: state.log ? "log" : "linear", domain: below ? [0.3, 1] : [0, 1], automargin: true, nticks: 7 };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 12, color: ink },
      margin: { l: 56, r: 14, t: 14, b: 44 }, height: drawnHeight, hovermode: "closest", dragmode: phone ? false : "zoom",
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: ink, size: 12 }, align: "left" },
      xaxis: {
        title: { text: escaped(named[state.x].head), standoff: 6 }, tickvals: where.ticks.map(([, spot]) => spot), range: [where.least - margin, where.most + margin],
        ticktext: where.ticks.map(([key]) => label(entry(named[state.x], key))), tickangle: upright ? -90 : few ? 0 : "auto", tickfont: { size: letters }, gridcolor: grid, zeroline: false, automargin: true, anchor: below ? "y2" : "y",
      },
      yaxis: main, ...(below ? { yaxis2: { title: { text: "accuracy", font: { color: soft } }, domain: [0, 0.19], gridcolor: grid, zeroline: false, rangemode: "tozero", nticks: 4, automargin: true } } : {}),
      showlegend: legend, legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, font: { size: 11 } },
      shapes: chance === undefined ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: chance, y1: chance, line: { color: soft, width: 1, dash: "dot" } }],
    };
  }

  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], toImageButtonOptions: { format: "svg", filename: "leakage" } };

  function draw() {
    if (!window.Plotly) return; // it is called again when Plotly is there
    const among = chosen();
    let found = grouped(among);
    const dropped = Math.max(0, found.length - MOST);
    found = found.slice(0, MOST);
    const shown = found.flatMap((one) => one.rows);
    const metric = entry(named.metric, state.metric);
    const bound = metric === "epsilon_lower_bound" || metric === "epsilon";
    const where = standing(named[state.x], shown.length ? shown : among);
    const traces = found.flatMap((one, index) => trace(one, index, found.length, where));
    const limits = limit("ceiling", bound ? "most that the audit can show" : "ceiling that ε allows", shown, where, "dot");
    if (bound && named.accounted) limits.push(...limit("accounted", "accounted ε", shown, where, "solid"));
    const below = shown.length ? utility(where) : [];
    const legend = found.some((one) => one.mate > 0); // else the boxes above say it all
    const drawn = layout(where, below.length > 0, legend, data.metrics[metric]);
    drawn.annotations = limits.map(called);
    $("#plot > .empty")?.remove();
    Plotly.react("plot", [...traces, ...limits, ...below], drawn, config);
    const notes = [];
    if (!shown.length) notes.push("Nothing is chosen; tick a box above.");
    else notes.push(`${counted(shown.length, "number", "numbers")} in ${counted(found.length, "series", "series")}${shown.some((row) => interval(row)) ? "; bars are 95% intervals" : ""}.`);
    if (dropped) notes.push(`${counted(dropped, "more series is", "more series are")} not drawn; choose a value for another field.`);
    $("#plot-note").textContent = notes.join(" ");
    list(found);
  }

  /** The same numbers without a pointer. */
  function list(found) {
    const x = named[state.x];
    const heads = ["series", x.head, data.metrics[entry(named.metric, state.metric)], "95% interval", ...(named.ceiling ? ["ceiling"] : []), "run"];
    const lines = found.flatMap((one) => one.rows.map((row) => [
      one.name, told(x.name, row) || x.missing, told("value", row), interval(row), ...(named.ceiling ? [told("ceiling", row)] : []), told("run", row),
    ]));
    $("#plot-numbers table").replaceChildren(
      make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", text })))),
      make("tbody", {}, ...lines.slice(0, 500).map((line) => make("tr", {}, ...line.map((text) => make("td", { text }))))),
    );
  }

  const preferred = named.metric.values.indexOf("auc");
  if (preferred >= 0) state.metric = preferred;
  startMetric();
  renew();
  themed.push(draw);
  return { draw };
})();
