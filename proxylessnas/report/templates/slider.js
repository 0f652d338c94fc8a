// The slider of a search's report: what it moves is in the element #search (probabilities in thousandths).
"use strict";
(() => {
  const search = JSON.parse(document.getElementById("search").textContent);
  const slider = document.getElementById("moment"), play = document.getElementById("play");
  const now = document.getElementById("now"), model = document.getElementById("model");
  const rows = [...document.querySelectorAll("#probs tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const charts = [...document.querySelectorAll("svg[data-x0]")];
  const [first, last] = search.range;
  let timer = 0;

  // The latest figure that was known at a step.
  const latest = (points, step) => {
    let found = null;
    for (const [x, y] of points) if (x <= step) found = y;
    return found;
  };

  const show = (index) => {
    const [step, epoch, expected, probs] = search.moments[index];
    const words = search.stages.map(() => []);
    rows.forEach((cells, block) => {
      const line = probs[block];
      let pick = 0;
      line.forEach((p, k) => { if (p > line[pick]) pick = k; });
      cells.forEach((cell, k) => {
        if (cell.classList.contains("none")) return;
        cell.textContent = (line[k] / 1000).toFixed(2);
        cell.style.setProperty("--p", cell.textContent);
        cell.classList.toggle("pick", k === pick);
      });
      const own = words[search.stage[block]];
      if (block % search.group) own[own.length - 1] += search.columns[pick];
      else own.push(search.columns[pick]);
    });
    model.textContent = search.stages.map((width, i) => `${String(width).padStart(4)} ch  ${words[i].join(" ")}`).join("\n");
    const parts = [`epoch ${epoch}, step ${step.toLocaleString("en")}`];
    if (expected !== null) {
      const target = search.target === null ? "" : ` (target ${search.target} ${search.unit})`;
      parts.push(`expected ${search.cost} ${expected} ${search.unit}${target}`);
    }
    const top1 = latest(search.top1, step);
    if (top1 !== null) parts.push(`derived model ${top1.toFixed(2)} %`);
    now.textContent = parts.join("; ");
    slider.setAttribute("aria-valuetext", parts.join("; "));
    for (const chart of charts) {
      const x0 = Number(chart.dataset.x0), x1 = Number(chart.dataset.x1);
      const x = x0 + (x1 - x0) * (last > first ? (step - first) / (last - first) : 1);
      const line = chart.querySelector(".cursor");
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  };

  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };

  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) >= Number(slider.max)) slider.value = 0;
    show(Number(slider.value));
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show(Number(slider.value));
      if (Number(slider.value) >= Number(slider.max)) stop();
    }, Math.min(150, Math.max(40, 9000 / search.moments.length)));
  });
  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  slider.disabled = play.disabled = false;
  slider.value = slider.max;
  show(Number(slider.value));
})();
