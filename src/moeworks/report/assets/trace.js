"use strict";
// What all panels of a trace share: packed arrays, words, elements, and the layer and expert that are chosen.
(() => {
  const { trace } = moeworks.data;

  function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
  }

  // An array with a shape: at(i, j, k), and row(i, j) for the last dimension. Missing numbers are null.
  function unpack(packed) {
    if (!packed) return null;
    const { shape, codes, width } = packed;
    const raw = width
      ? new { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width](bytes(codes))
      : new Uint16Array(bytes(codes));
    const value = width
      ? (place) => raw[place] - 1
      : (place) => (raw[place] === 65535 ? null : packed.low + (raw[place] / 65534) * packed.span);
    const offset = (places) => places.reduce((sum, place, i) => sum * shape[i] + place, 0);
    const last = shape[shape.length - 1];
    return {
      shape,
      at: (...places) => value(offset(places)),
      row: (...places) => Array.from({ length: last }, (_, i) => value(offset(places) * last + i)),
    };
  }

  const percent = (share) =>
    share === null ? "–" : share > 0 && share < 0.001 ? "under 0.1 %" : `${(100 * share).toFixed(1)} %`;
  const short = (value) =>
    value === null || Number.isNaN(value) ? "–" : String(Number(value.toPrecision(3)));
  const count = (value) => value.toLocaleString("en");
  const layerName = (place) => `layer ${trace.layers[place]}`;

  // Text goes in as text: nothing that a trace holds is ever read as HTML.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function table(label, header, rows) {
    const head = header.map((name, i) => element("th", { scope: "col", class: i ? "number" : null }, name));
    const body = rows.map((row) =>
      element("tr", {}, ...row.map((cell, i) =>
        i ? element("td", { class: "number" }, cell) : element("th", { scope: "row" }, cell))));
    return element("table", { "aria-label": label },
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  }

  // For words that plotly reads as its own markup and placeholders.
  const inert = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("%{", "%\u200b{");

  const state = { layer: 0, expert: 0 };
  const followers = [];
  function choose(change) {
    Object.assign(state, change);
    for (const select of document.querySelectorAll(".pick-layer, .layer-slider")) select.value = state.layer;
    followers.forEach((follow) => follow(state));
  }
  for (const select of document.querySelectorAll(".pick-layer, .layer-slider")) {
    select.addEventListener("input", () => choose({ layer: Number(select.value) }));
  }

  // Opens the card of an expert, and leads the keyboard there.
  function openCard(layer, expert) {
    choose({ layer, expert });
    const title = document.getElementById("card-title");
    title.scrollIntoView({ block: "nearest" });
    title.focus({ preventScroll: true });
  }

  const expertButton = (layer, expert) =>
    element("button", { type: "button", class: "link", onclick: () => openCard(layer, expert),
      "aria-label": `expert ${expert} of ${layerName(layer)}` }, String(expert));

  Object.assign(moeworks, {
    unpack, percent, short, count, layerName, element, table, inert, state, choose, openCard, expertButton,
    follow: (work) => followers.push(work),
  });
})();
