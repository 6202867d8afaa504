"use strict";
// The co-activation graph: experts on a circle, in an order that puts those that meet side by side.
(() => {
  const { data, unpack, short, count, layerName, element, table, state, expertButton, openCard } = moeworks;
  const { graph, experts, metrics } = data.trace;
  const order = unpack(graph.order);
  const load = unpack(metrics.find((metric) => metric.key === "load").values);
  const drawing = document.getElementById("graph");
  const list = document.getElementById("graph-pairs");
  const SIZE = 460;
  const RADIUS = 188;

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function places(layer) {
    const found = new Map();
    order.row(layer).forEach((expert, i) => {
      const angle = (2 * Math.PI * i) / experts - Math.PI / 2;
      found.set(expert, { x: SIZE / 2 + RADIUS * Math.cos(angle), y: SIZE / 2 + RADIUS * Math.sin(angle), angle });
    });
    return found;
  }

  function edge([i, j, lift, bound, number], at, most) {
    const [a, b] = [at.get(i), at.get(j)];
    const strength = Math.log(lift) / Math.log(Math.max(most, 1.01));
    const path = `M${a.x.toFixed(1)} ${a.y.toFixed(1)}Q${SIZE / 2} ${SIZE / 2} ${b.x.toFixed(1)} ${b.y.toFixed(1)}`;
    return svg("path", { d: path, class: "edge", "stroke-width": (0.8 + 4 * strength).toFixed(2),
      "stroke-opacity": (0.25 + 0.7 * strength).toFixed(2) },
    svg("title", {}, `experts ${i} and ${j}: ${short(lift)} × as often as by load (surely ${short(bound)}), ${count(number)} tokens`));
  }

  function node(expert, { x, y, angle }, layer) {
    const value = load.at(layer, expert) ?? 0;
    const room = Math.min(13, (Math.PI * RADIUS) / experts);
    const radius = Math.max(1.5, Math.min(room, 0.55 * room * Math.sqrt(value) + 1));
    const far = RADIUS + 16;
    const made = svg("g", { class: "node" },
      svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: radius.toFixed(1) }),
      svg("title", {}, `expert ${expert}: load ${short(value)}`));
    const step = Math.max(1, Math.ceil(experts / 80));
    if (order.row(layer).indexOf(expert) % step === 0) {
      made.append(svg("text", { x: (SIZE / 2 + far * Math.cos(angle)).toFixed(1),
        y: (SIZE / 2 + far * Math.sin(angle) + 3.5).toFixed(1) }, String(expert)));
    }
    made.addEventListener("click", () => openCard(layer, expert));
    return made;
  }

  function draw() {
    const { layer } = state;
    const edges = graph.edges[layer];
    const at = places(layer);
    const most = edges.length ? edges[0][2] : 1;
    const label = `Graph of ${experts} experts of ${layerName(layer)} with ${edges.length} pairs. The table has them.`;
    drawing.replaceChildren(svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": label },
      svg("g", {}, ...edges.toReversed().map((one) => edge(one, at, most))),
      svg("g", {}, ...[...at].map(([expert, place]) => node(expert, place, layer)))));
    const rows = edges.slice(0, 30).map(([i, j, lift, bound, number, expected]) => [
      element("span", {}, expertButton(layer, i), " and ", expertButton(layer, j)), short(lift), short(bound), count(number), short(expected),
    ]);
    list.replaceChildren(rows.length
      ? table(`Pairs of ${layerName(layer)}`, ["experts", "lift", "surely", "tokens", "by load"], rows)
      : element("p", { class: "about" }, "No pair surely meets more often than its loads say."));
  }

  let layer = state.layer;
  moeworks.follow(() => {
    if (state.layer !== layer) draw();
    layer = state.layer;
  });
  draw();
})();
