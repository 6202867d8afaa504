"use strict";
(() => {
  const { films, colors } = JSON.parse(document.getElementById("data").textContent);
  const color = (load) => colors[Math.min(Math.round(load * 100), colors.length - 1)];

  function show(slide) {
    const key = slide.dataset.film;
    const index = Number(slide.value);
    slide.nextElementSibling.textContent = films[key].frames[index];
    for (const grid of document.querySelectorAll(`.film[data-film="${key}"]`)) {
      const load = films[key].load[Number(grid.dataset.arm)][index];
      grid.style.gridTemplateColumns = `repeat(${load[0].length}, 1fr)`;
      grid.replaceChildren(...load.flatMap((row, layer) => row.map((value, expert) => {
        const cell = document.createElement("div");
        cell.style.background = color(value);
        cell.title = `layer ${layer}, expert ${expert}: ${value}`;
        return cell;
      })));
    }
  }

  for (const slide of document.querySelectorAll(".slide")) {
    slide.addEventListener("input", () => show(slide));
    show(slide);
    const button = slide.closest(".controls").querySelector(".play");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "▶ Play";
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (slide.value === slide.max) slide.value = 0;
      button.textContent = "❚❚ Pause";
      timer = setInterval(() => {
        slide.value = Number(slide.value) + 1;
        show(slide);
        if (slide.value === slide.max) stop();
      }, 400);
    });
  }
})();
