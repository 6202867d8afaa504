"use strict";
// Domains of the chosen layer: preferences, and shares with the band that chance gives.
(() => {
  const { data, unpack, state } = moeworks;
  const { domains, experts } = data.trace;
  if (!domains) return;
  const column = Object.fromEntries(
    ["share", "low", "high", "wordsOnly", "preference"].map((name) => [name, unpack(domains[name])]));
  const pick = document.getElementById("strip-domain");
  const places = Array.from({ length: experts }, (_, i) => i);

  function drawPreferences() {
    Plotly.restyle("preferences", {
      z: [domains.names.map((_, d) => places.map((e) => column.preference.at(state.layer, e, d)))],
    }, [0]);
  }

  function drawStrip() {
    const d = Number(pick.value);
    const values = (name) => places.map((e) => column[name].at(state.layer, e, d));
    const low = values("low");
    const high = values("high");
    const share = values("share");
    const ink = data.themes[moeworks.themeName()].layout.colorway;
    const colors = share.map((value, e) => (value > high[e] ? ink[1] : value < low[e] ? ink[0] : "#8b929b"));
    Plotly.restyle("strip", {
      x: [places], y: [high.map((value, e) => value - low[e])], base: [low],
    }, [0]);
    Plotly.restyle("strip", {
      x: [places], y: [share], "marker.color": [colors],
    }, [1]);
    Plotly.restyle("strip", {
      x: [column.wordsOnly ? places : []], y: [column.wordsOnly ? values("wordsOnly") : []],
      visible: column.wordsOnly !== null,
      "marker.color": ink[2],
    }, [2]);
  }

  let layer = state.layer;
  pick.addEventListener("input", drawStrip);
  moeworks.follow(() => {
    if (state.layer === layer) return;
    layer = state.layer;
    drawPreferences();
    drawStrip();
  });
  moeworks.onTheme(drawStrip);
  drawPreferences();
  drawStrip();
})();
