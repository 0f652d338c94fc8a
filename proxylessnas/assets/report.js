"use strict";
(() => {
  const story = JSON.parse(document.getElementById("story").textContent);
  const slider = document.getElementById("moment"), play = document.getElementById("play");
  const now = document.getElementById("now"), net = document.getElementById("net");
  const rows = [...document.querySelectorAll("#probs tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const charts = [...document.querySelectorAll("svg[data-x0]")];
  const [first, last] = story.range;
  const stages = story.stages;
  let timer = 0;

  // The latest figure that was known at a step.
  const latest = (points, step) => {
    let found = null;
    for (const [x, y] of points) if (x <= step) found = y;
    return found;
  };

  const show = (index) => {
    const [step, epoch, expected, probs] = story.moments[index];
    const words = stages.map(() => []);
    rows.forEach((cells, block) => {
      const line = probs[block];
      let pick = 0;
      line.forEach((p, k) => { if (p > line[pick]) pick = k; });
      cells.forEach((cell, k) => {
        if (cell.classList.contains("none")) return;
        cell.textContent = (line[k] / 1000).toFixed(2);
        cell.style.backgroundColor = `rgba(var(--p), ${(0.62 * line[k] / 1000).toFixed(3)})`;
        cell.classList.toggle("pick", k === pick);
      });
      words[story.stage[block]].push(story.columns[pick]);
    });
    net.textContent = stages.map((width, i) => `${String(width).padStart(4)} ch  ${words[i].join(" ")}`).join("\n");
    const parts = [`epoch ${epoch}, step ${step.toLocaleString("en")}`];
    if (expected !== null) {
      const target = story.target === null ? "" : ` (target ${story.target} ${story.unit})`;
      parts.push(`expected ${story.cost} ${expected} ${story.unit}${target}`);
    }
    const top1 = latest(story.top1, step);
    if (top1 !== null) parts.push(`derived net ${top1.toFixed(2)} %`);
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
    }, Math.min(150, Math.max(40, 9000 / story.moments.length)));
  });
  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  slider.disabled = play.disabled = false;
  slider.value = slider.max;
  show(Number(slider.value));
})();
