"use strict";
// The card of one expert: its work, words, domains and neighbours.
(() => {
  const { data, unpack, percent, short, count, layerName, element, table, choose, expertButton } = moeworks;
  const { trace } = data;
  const body = document.getElementById("card-body");
  const title = document.getElementById("card-title");
  const experts = document.getElementById("card-expert");
  const assignments = unpack(trace.facts.assignments);
  const metric = Object.fromEntries(trace.metrics.map((one) => [one.key, unpack(one.values)]));
  const words = trace.tokens && {
    place: unpack(trace.tokens.place), counts: unpack(trace.tokens.counts), shares: unpack(trace.tokens.shares),
  };
  const domains = trace.domains && Object.fromEntries(
    ["share", "low", "high", "preference"].map((name) => [name, unpack(trace.domains[name])]));
  const near = { ids: unpack(trace.graph.nearest), lift: unpack(trace.graph.lift) };
  const alike = trace.similarity && { ids: unpack(trace.similarity.nearest), cosine: unpack(trace.similarity.cosine) };

  const block = (name, ...content) => element("div", { class: "block" }, element("h4", {}, name), ...content);

  function facts(layer, expert) {
    const known = [
      ["assignments", count(assignments.at(layer, expert))],
      ["load", `${short(metric.load.at(layer, expert))} of the fair share`],
      ["first choice", percent(metric.first.at(layer, expert))],
      ["keeps the next token", percent(metric.keeps.at(layer, expert))],
      metric.weight && ["weight when chosen", percent(metric.weight.at(layer, expert))],
      metric.entropy && ["router undecided", short(metric.entropy.at(layer, expert))],
      metric.words && ["word by word", short(metric.words.at(layer, expert))],
    ].filter(Boolean);
    const pairs = known.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
    return block("At work", element("dl", { class: "facts" }, ...pairs));
  }

  function topTokens(layer, expert) {
    if (!words) return block("Tokens that stand out", element("p", { class: "about" }, "Not known: the trace has no token ids."));
    const rows = words.place.row(layer, expert)
      .map((place, i) => [place, i])
      .filter(([place]) => trace.tokens.ids[place] >= 0)
      .map(([place, i]) => [
        element("code", { title: `token ${trace.tokens.ids[place]}` }, trace.tokens.texts[place]),
        percent(words.shares.at(layer, expert, i)), count(words.counts.at(layer, expert, i)),
      ]);
    const about = `Seen ${trace.tokens.minCount} times at least; the share of their occurrences that comes here.`;
    if (!rows.length) return block("Tokens that stand out", element("p", { class: "about" }, `None. ${about}`));
    return block("Tokens that stand out", element("p", { class: "about" }, about),
      table("Tokens that stand out", ["token", "comes here", "seen"], rows));
  }

  // A bar for the share, over the band that chance gives.
  function bar(value, low, high, most) {
    const at = (share) => `${Math.min(100, (100 * share) / most).toFixed(1)}%`;
    return element("span", { class: "bar", "aria-hidden": "true" },
      element("span", { class: "band", style: `left:${at(low)};width:calc(${at(high)} - ${at(low)} + 2px)` }),
      element("span", { class: "fill", style: `width:${at(value)}` }));
  }

  function domainRows(layer, expert) {
    if (!domains) return block("Domains", element("p", { class: "about" }, "Not known: all texts have one label."));
    const shares = domains.share.row(layer, expert);
    const highs = domains.high.row(layer, expert);
    const lows = domains.low.row(layer, expert);
    const most = Math.max(...shares, ...highs, 1e-9);
    const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
    const rows = order.map((i) => {
      const sign = shares[i] > highs[i] ? "▲ more" : shares[i] < lows[i] ? "▼ less" : "as chance";
      return [
        element("span", {}, trace.domains.names[i], bar(shares[i], lows[i], highs[i], most)),
        percent(shares[i]), `${percent(lows[i])} to ${percent(highs[i])}`, sign,
      ];
    });
    return block("Domains", element("p", { class: "about" }, "Share of a domain's tokens that come here, and the band that chance gives."),
      table("Domains", ["domain", "share", "by chance", ""], rows));
  }

  function neighbours(layer, expert) {
    const row = (ids, values, name) => ids
      .map((other, i) => [other, values[i]])
      .filter(([other]) => other >= 0)
      .map(([other, value]) => element("li", {}, expertButton(layer, other), ` ${name(value)}`));
    const together = row(near.ids.row(layer, expert), near.lift.row(layer, expert), (v) => `${short(v)} × as often as by load`);
    const list = (items, none) => items.length ? element("ul", {}, ...items) : element("p", { class: "about" }, none);
    const parts = [block("Chosen together with", list(together, "No expert surely more often than by load."))];
    if (alike) {
      const like = row(alike.ids.row(layer, expert), alike.cosine.row(layer, expert), (v) => `cosine ${v.toFixed(3)}`);
      parts.push(block("Most alike by weights", list(like, "No other expert.")));
    }
    return parts;
  }

  function overLayers(expert) {
    const loads = trace.layers.map((_, layer) => metric.load.at(layer, expert) ?? 0);
    const most = Math.max(3, ...loads);
    const bars = loads.map((load, layer) =>
      element("span", { class: "column", title: `${layerName(layer)}: ${short(load)}` },
        element("span", { style: `height:${((100 * load) / most).toFixed(1)}%` })));
    const label = loads.map((load, layer) => `${layerName(layer)} ${short(load)}`).join(", ");
    return block(`Load of number ${expert} in every layer`,
      element("p", { class: "about" }, "Experts of one number in different layers are strangers; the line is the fair share."),
      element("div", { class: "columns", role: "img", "aria-label": label, style: `--fair:${(100 / most).toFixed(1)}%` }, ...bars));
  }

  function show({ layer, expert }) {
    title.textContent = `Expert ${expert} of ${layerName(layer)}`;
    experts.value = expert;
    body.replaceChildren(element("div", { class: "blocks" },
      element("div", {}, facts(layer, expert), overLayers(expert)),
      element("div", {}, topTokens(layer, expert), ...neighbours(layer, expert)),
      domainRows(layer, expert)));
  }

  experts.addEventListener("input", () => choose({ expert: Number(experts.value) }));
  moeworks.follow(show);
  show(moeworks.state);
})();
