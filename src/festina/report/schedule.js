"use strict";
// Draws a plan's schedule as one heat map per component kind; called by the page's script for every chosen point.
const festinaSchedule = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const NAMES = { C: "compute", R: "reuse", S: "skip", G: "gate", T: "tokens", L: "replay", M: "model" };
  const nameOf = (action) => NAMES[action] ?? "forecast";
  const WORDS = { ...NAMES, G: "the gate decides", T: "compute some tokens", L: "no call, the last answer again", M: "another model" };
  const wordsOf = (action) => WORDS[action] ?? `forecast of order ${action}`;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  function make(tag, text, marks = {}) {
    const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(marks)) made.setAttribute(name, value);
    if (text !== "") made.textContent = text;
    return made;
  }

  // Every so many, so that at most `most` labels stand on an axis; the distance is 1, 2 or 5 times a power of ten.
  function ticks(count, most) {
    let distance = 1;
    for (let turn = 0; count / distance > most; turn += 1) distance *= turn % 3 === 1 ? 2.5 : 2;
    const found = [];
    for (let place = 0; place < count; place += distance) found.push(place);
    return found;
  }

  function cells(panel, steps) {
    const paths = new Map();
    panel.rows.forEach((row, y) => [...row].forEach((action, x) => {
      const opened = paths.get(action) ?? { count: 0, path: "" };
      // Cells leave a hair of ground between them.
      opened.path += `M${x + 0.05} ${y + 0.05}h.9v.9h-.9z`;
      opened.count += 1;
      paths.set(action, opened);
    }));
    const height = panel.rows.length;
    const svg = make("svg:svg", "", {
      viewBox: `0 0 ${steps} ${height}`, preserveAspectRatio: "none", tabindex: "0", role: "img",
      style: `height:${height * Math.min(14, Math.max(4, 200 / height))}px`,
    });
    const words = [];
    for (const [action, drawn] of paths) {
      const order = NAMES[action] === undefined ? 0.4 + 0.6 * Math.min(1, Number(action) / 3) : 1;
      svg.append(make("svg:path", "", {
        d: drawn.path, class: nameOf(action), "data-action": action, "data-count": drawn.count, "fill-opacity": order,
      }));
      words.push(`${wordsOf(action)} ${percent(drawn.count / (height * steps))}`);
    }
    svg.setAttribute("aria-label", `${panel.title}, ${height} rows by ${steps} steps: ${words.join(", ")}. Arrow keys read single cells.`);
    return svg;
  }

  // A cell is read by pointing at it or by the arrow keys; what it holds is said below the panels.
  function readable(svg, panel, plan) {
    const steps = plan.noise.length;
    const cursor = make("svg:rect", "", { class: "cursor", width: 1, height: 1, visibility: "hidden" });
    let at = { x: 0, y: 0 };
    svg.append(cursor);
    const tell = (x, y) => {
      at = { x: Math.min(steps - 1, Math.max(0, x)), y: Math.min(panel.rows.length - 1, Math.max(0, y)) };
      cursor.setAttribute("x", at.x);
      cursor.setAttribute("y", at.y);
      cursor.setAttribute("visibility", "visible");
      document.getElementById("cell").textContent =
        `Step ${at.x} (noise ${plan.noise[at.x].toFixed(2)}), ${panel.title}, block ${panel.labels[at.y]}: ${wordsOf(panel.rows[at.y][at.x])}`;
    };
    const leave = () => { cursor.setAttribute("visibility", "hidden"); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      tell(Math.floor(((event.clientX - box.left) / box.width) * steps),
        Math.floor(((event.clientY - box.top) / box.height) * panel.rows.length));
    });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      tell(at.x + move[0], at.y + move[1]);
    });
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) tell(at.x, at.y); });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
  }

  function panelFigure(panel, plan) {
    const steps = plan.noise.length;
    const figure = make("figure", "", { class: "panel", "data-panel": panel.title, "data-rows": panel.rows.length, "data-steps": steps });
    const area = make("div", "", { class: "area" });
    const rows = make("div", "", { class: "rows", "aria-hidden": "true" });
    const across = make("div", "", { class: "steps", "aria-hidden": "true" });
    const short = panel.labels.every((label) => label.length <= 3);
    rows.append(make("span", short ? "block" : "site", { class: "name" }));
    for (const row of ticks(panel.rows.length, 7)) {
      rows.append(make("span", short ? panel.labels[row] : String(row), { style: `top:${(100 * (row + 0.5)) / panel.rows.length}%` }));
    }
    for (const step of ticks(steps, 6)) across.append(make("span", String(step), { style: `left:${(100 * (step + 0.5)) / steps}%` }));
    const svg = cells(panel, steps);
    readable(svg, panel, plan);
    area.append(rows, svg, across, make("div", "step (0 = pure noise)", { class: "across" }));
    figure.append(make("figcaption", panel.title), area);
    return figure;
  }

  function legendItem(action, count, total) {
    const item = make("li", "", { "data-legend": action, "data-count": count });
    item.append(make("span", "", { class: `patch ${action}` }), `${action} ${percent(count / total)}`);
    return item;
  }

  return (point) => {
    const { plan } = point;
    document.getElementById("schedule").hidden = plan === null;
    document.getElementById("cell").textContent = "";
    document.getElementById("schedule-note").textContent = plan === null ? point.unplanned : plan.told;
    const shown = plan === null ? [] : Object.entries(plan.counts).filter(([, count]) => count > 0);
    const total = shown.reduce((sum, [, count]) => sum + count, 0);
    document.getElementById("legend").replaceChildren(...shown.map(([action, count]) => legendItem(action, count, total)));
    document.getElementById("panels").replaceChildren(...(plan === null ? [] : plan.panels.map((panel) => panelFigure(panel, plan))));
  };
})();
