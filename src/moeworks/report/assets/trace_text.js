"use strict";
// The text view: each token in the colour of its expert, with all of its choices on request.
(() => {
  const { data, unpack, percent, short, layerName, element, choose, expertButton } = moeworks;
  const { trace } = data;
  const { sample } = trace;
  const COLORS = 6;
  const pick = document.getElementById("text-pick");
  const rank = document.getElementById("text-rank");
  const numbers = document.getElementById("text-numbers");
  const body = document.getElementById("text-body");
  const legend = document.getElementById("text-legend");
  const detail = document.getElementById("token-detail");
  const columns = Object.fromEntries(
    ["ids", "weights", "entropy", "margin", "runnersUp", "behind"].map((name) => [name, unpack(sample[name])]));
  let spans = [];
  let current = 0;

  const text = () => Number(pick.value);
  const expertOf = (place) => columns.ids.at(moeworks.state.layer, sample.starts[text()] + place, rank ? Number(rank.value) : 0);

  function makeTokens() {
    current = 0;
    const pieces = sample.texts[text()];
    spans = pieces.map((piece, place) => {
      const seen = piece.replaceAll("\n", "⏎");
      return element("span", { role: "option", class: "token", tabindex: place ? "-1" : "0" }, seen);
    });
    // A line ends where the text says so.
    body.replaceChildren(...spans.flatMap((span, i) => (pieces[i].includes("\n") ? [span, element("br")] : [span])));
    color();
    detail.textContent = "Choose a token.";
  }

  function color() {
    const experts = spans.map((_, place) => expertOf(place));
    const uses = new Map();
    experts.filter((expert) => expert >= 0).forEach((expert) => uses.set(expert, (uses.get(expert) ?? 0) + 1));
    const order = [...uses].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const place = new Map(order.slice(0, COLORS).map(([expert], i) => [expert, i]));
    spans.forEach((span, i) => {
      const expert = experts[i];
      span.dataset.color = place.get(expert) ?? "rest";
      span.dataset.expert = expert < 0 ? "–" : expert;
      span.setAttribute("aria-label", `${span.textContent}, ${expert < 0 ? "no expert" : `expert ${expert}`}`);
    });
    const chips = order.slice(0, COLORS).map(([expert, number], i) =>
      element("span", { class: "chip" }, element("span", { class: "token", "data-color": i, "aria-hidden": "true" }, "  "),
        " expert ", expertButton(moeworks.state.layer, expert), ` ${percent(number / spans.length)}`));
    const rest = order.length - COLORS;
    if (rest > 0) {
      chips.push(element("span", { class: "chip" },
        element("span", { class: "token", "data-color": "rest", "aria-hidden": "true" }, "  "), ` ${rest} other experts`));
    }
    legend.replaceChildren(...chips);
    body.classList.toggle("numbered", numbers.checked);
  }

  function rows(row) {
    const { layer } = moeworks.state;
    const weights = columns.weights?.row(layer, row);
    // An empty slot is -1; empty ones stand behind all others.
    const chosen = [...columns.ids.row(layer, row)].filter((expert) => expert >= 0);
    if (!chosen.length) return [element("li", {}, "no expert works on this token")];
    return chosen.map((expert, i) =>
      element("li", {}, "expert ", expertButton(layer, expert), weights ? ` has ${percent(weights[i])} of the weight` : ""));
  }

  function missed(row) {
    if (!columns.runnersUp) return [];
    const { layer } = moeworks.state;
    const behind = columns.behind.row(layer, row);
    if (behind[0] === null) return [];
    const items = columns.runnersUp.row(layer, row).map((expert, i) =>
      element("li", {}, "expert ", expertButton(layer, expert), behind[i] > 0
        ? `, ${short(behind[i])} logits ahead, but passed over by a bias or groups`
        : `, ${short(-behind[i])} logits behind`));
    return [element("h4", {}, "Runners-up"), element("ol", {}, ...items)];
  }

  function show(place) {
    spans[current]?.setAttribute("tabindex", "-1");
    spans[current]?.removeAttribute("aria-selected");
    current = place;
    const span = spans[place];
    span.setAttribute("tabindex", "0");
    span.setAttribute("aria-selected", "true");
    const row = sample.starts[text()] + place;
    const { layer } = moeworks.state;
    const facts = [`position ${sample.positions[row]}`];
    if (sample.tokenIds) facts.push(`token ${sample.tokenIds[row]}`);
    if (columns.entropy) facts.push(`router undecided ${short(columns.entropy.at(layer, row))}`);
    if (columns.margin) facts.push(`margin ${short(columns.margin.at(layer, row))} logits`);
    detail.replaceChildren(
      element("h4", {}, element("code", {}, sample.texts[text()][place].replaceAll(" ", "␣").replaceAll("\n", "⏎")), ` in ${layerName(layer)}`),
      element("p", { class: "about" }, facts.join(" · ")),
      element("ol", {}, ...rows(row)), ...missed(row));
  }

  const placeOf = (target) => spans.indexOf(target.closest(".token"));
  body.addEventListener("mouseover", (event) => {
    if (placeOf(event.target) >= 0) show(placeOf(event.target));
  });
  body.addEventListener("focusin", (event) => {
    if (placeOf(event.target) >= 0) show(placeOf(event.target));
  });
  body.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -spans.length, End: spans.length }[event.key];
    const layers = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) {
      event.preventDefault();
      spans[Math.max(0, Math.min(spans.length - 1, current + step))].focus();
    } else if (layers) {
      event.preventDefault();
      choose({ layer: Math.max(0, Math.min(trace.layers.length - 1, moeworks.state.layer + layers)) });
      show(current);
    }
  });
  body.addEventListener("click", (event) => {
    if (placeOf(event.target) >= 0) spans[placeOf(event.target)].focus();
  });

  pick.addEventListener("input", makeTokens);
  rank?.addEventListener("input", color);
  numbers.addEventListener("input", color);
  let layer = moeworks.state.layer;
  moeworks.follow((state) => {
    if (state.layer !== layer) color();
    layer = state.layer;
  });
  makeTokens();
  document.querySelectorAll(".layer-slider").forEach((slider) => { slider.value = layer; });
})();
