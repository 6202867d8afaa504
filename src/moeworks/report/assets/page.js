"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { figures, themes } = data;
  const painted = []; // what else follows the colours of the theme
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]],
    // On a touch screen a finger on a figure scrolls the page.
    scrollZoom: false,
  };

  let shownTheme = dark.matches ? "dark" : "light";
  const theme = (name) => themes[name ?? (dark.matches ? "dark" : "light")];
  window.moeworks = { data, themeName: () => shownTheme, onTheme: (work) => painted.push(work) };

  function drawAll() {
    for (const [id, figure] of Object.entries(figures)) {
      const layout = { ...figure.layout, template: theme() };
      if (touch) layout.dragmode = false;
      Plotly.newPlot(id, figure.data, layout, config);
    }
  }

  // Pixels, roughly, that the longest of these labels takes, with a gap.
  const textWidth = (labels) => 8 + 7 * Math.max(...labels.map((label) => label.length));

  // Plotly draws every label of a category axis, also on top of each other.
  function spaceLabels() {
    for (const [id, figure] of Object.entries(figures)) {
      if (!figure.frames) continue;
      const { x, y } = figure.data[0];
      const room = document.getElementById(id).clientWidth - textWidth(y) - 20;
      const step = 2 ** Math.max(0, Math.ceil(Math.log2((textWidth(x) * x.length) / room)));
      Plotly.relayout(id, { "xaxis.dtick": step });
    }
  }

  function paint(name) {
    shownTheme = name ?? (dark.matches ? "dark" : "light");
    for (const id of Object.keys(figures)) Plotly.relayout(id, { template: theme(name) });
    painted.forEach((work) => work());
  }

  function showFrame(id, index) {
    const frame = figures[id].frames[index];
    Plotly.restyle(id, { z: [frame.data[0].z] }, [0]);
    const output = document.querySelector(`output[for="${id}-slider"]`);
    if (output) output.textContent = frame.name;
    const figure = document.getElementById(id).closest("figure");
    figure.querySelectorAll(".by-layer").forEach((table, i) => { table.hidden = i !== index; });
  }

  function addPlayer(button) {
    const slider = document.querySelector(`input.frames[data-for="${button.dataset.for}"]`);
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "▶ Play";
    };
    const goTo = (index) => {
      slider.value = index;
      slider.dispatchEvent(new Event("input"));
    };
    const advance = () => {
      goTo(Number(slider.value) + 1);
      if (slider.value === slider.max) stop();
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) goTo(0);
      button.textContent = "❚❚ Pause";
      timer = setInterval(advance, 250);
    });
    slider.addEventListener("pointerdown", stop);
    slider.addEventListener("keydown", stop);
  }

  drawAll();
  spaceLabels();
  for (const control of document.querySelectorAll(".frames")) {
    const show = () => showFrame(control.dataset.for, Number(control.value));
    control.addEventListener("input", show);
    show(); // a reloaded page keeps the position of its controls
  }
  document.querySelectorAll(".play").forEach(addPlayer);
  addEventListener("resize", spaceLabels);
  dark.addEventListener("change", () => paint());
  addEventListener("beforeprint", () => paint("light"));
  addEventListener("afterprint", () => paint());
})();
