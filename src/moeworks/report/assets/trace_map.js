"use strict";
// The layer × expert map: any metric, a click or the keyboard to an expert's card.
(() => {
  const { data, unpack, short, layerName, inert, state, choose, openCard } = moeworks;
  const { trace } = data;
  const plot = document.getElementById("map");
  const list = document.getElementById("metric");
  const readout = document.getElementById("map-readout");
  const about = document.getElementById("metric-about");
  const metrics = trace.metrics.map((metric) => ({ ...metric, cells: unpack(metric.values) }));
  const metric = () => metrics[Number(list.value)];
  // What the keyboard stands on; null until it does.
  let cursor = null;

  const sentence = (layer, expert) =>
    `${layerName(layer)}, expert ${expert}: ${metric().hover.replace("{}", short(metric().cells.at(layer, expert)))}`;

  function scale() {
    const { scale: kind, values } = metric();
    const fair = data.themes[moeworks.themeName()].data.heatmap[0].colorscale;
    if (kind === "fair") return { low: 0, high: 3, colors: fair, ticks: [0, 1, 2, 3], texts: ["0", "1", "2", "3 +"] };
    if (kind === "difference") {
      return { low: -1, high: 2, colors: fair, ticks: [-1, 0, 1, 2], texts: ["−1", "0", "+1", "+2"] };
    }
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => values.low + share * values.span);
    return {
      low: values.low, high: values.low + values.span, colors: data.sequential[moeworks.themeName()], ticks,
      texts: ticks.map(short),
    };
  }

  function draw() {
    const { low, high, colors, ticks, texts } = scale();
    const { cells, name, hover } = metric();
    Plotly.restyle(plot, {
      z: [trace.layers.map((_, layer) => cells.row(layer))],
      zmin: low, zmax: high, colorscale: [colors],
      "colorbar.tickvals": [ticks], "colorbar.ticktext": [texts], "colorbar.title.text": inert(name),
      hovertemplate: `%{y}, expert %{x}<br>${inert(hover).replace("{}", "%{z:.3g}")}<extra></extra>`,
    });
    about.textContent = metric().about;
    say();
  }

  function say() {
    readout.textContent = sentence(...(cursor ?? [state.layer, state.expert]));
  }

  const box = ([layer, expert], dash) => ({
    type: "rect", x0: expert - 0.5, x1: expert + 0.5, y0: layer - 0.5, y1: layer + 0.5,
    line: { width: 2.5, dash, color: data.themes[moeworks.themeName()].layout.font.color },
  });

  function mark() {
    const chosen = box([state.layer, state.expert], "solid");
    Plotly.relayout(plot, { shapes: cursor ? [chosen, box(cursor, "dot")] : [chosen] });
  }

  const moves = {
    ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
    Home: [0, -trace.experts], End: [0, trace.experts],
    PageUp: [-trace.layers.length, 0], PageDown: [trace.layers.length, 0],
  };
  const within = (value, limit) => Math.max(0, Math.min(limit - 1, value));

  plot.removeAttribute("role");
  const area = plot.parentElement;
  area.id = "map-area";
  area.tabIndex = 0;
  area.setAttribute("role", "application");
  area.setAttribute("aria-label", `${plot.getAttribute("aria-label")} Arrow keys move, Enter opens the card.`);
  area.setAttribute("aria-describedby", "map-readout");
  area.addEventListener("keydown", (event) => {
    cursor ??= [state.layer, state.expert];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return openCard(...cursor);
    }
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    cursor = [within(cursor[0] + move[0], trace.layers.length), within(cursor[1] + move[1], trace.experts)];
    mark();
    say();
  });
  area.addEventListener("blur", () => { cursor = null; mark(); });
  plot.on("plotly_click", ({ points: [point] }) => openCard(point.pointIndex[0], point.pointIndex[1]));

  list.addEventListener("input", draw);
  moeworks.onTheme(() => { draw(); mark(); });
  moeworks.follow(() => { cursor = null; mark(); say(); });
  draw();
  mark();
})();
