"use strict";
// Where things stand on the plot's x axis, and what is written there.

/** Where each key of x stands, and the ticks: numbers by size (by their logarithm where they span much), none last. */
function standing(column, among) {
  const keys = distinct(column, among);
  const spots = new Map();
  const finite = column.kind === "number" ? keys.filter((key) => key !== null) : [];
  if (column.kind === "text" || !finite.length) keys.forEach((key, number_) => spots.set(key, number_));
  else {
    const spread = finite[0] > 0 && finite.at(-1) / finite[0] >= 20;
    const scale = spread ? Math.log10 : (value) => value;
    finite.forEach((key) => spots.set(key, scale(key)));
    const span = scale(finite.at(-1)) - scale(finite[0]) || 1;
    if (keys.includes(null)) spots.set(null, scale(finite.at(-1)) + span * Math.max(0.14, 1 / (2 * finite.length)));
  }
  const positions = [...spots.values()];
  const span = Math.max(...positions) - Math.min(...positions) || 1;
  let last = -Infinity;
  const ticks = [...spots].filter(([key, position]) => {
    const room = key === null || position - last >= (column.kind === "text" ? 0 : span / 24);
    if (room) last = position;
    return room;
  });
  const apart = ticks.slice(1).map(([, position], one) => position - ticks[one][1]);
  return { spots, ticks, span, step: Math.min(...apart, span), least: Math.min(...positions), most: Math.max(...positions) };
}

function escaped(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Text in lines of about `most` letters, four at most. */
function wrapped(text, most) {
  const lines = [""];
  for (const word of String(text).split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length >= most) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trim());
  }
  return [...lines.slice(0, 4), ...(lines.length > 4 ? ["…"] : [])].map(escaped).join("<br>");
}
