"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const byName = new Map(page.points.map((point) => [point.name, point]));
  const uncached = byName.get(page.uncached);
  const kinds = new Map(page.kinds.map((kind) => [kind.kind, kind]));
  const timed = page.points.some((point) => point.seconds !== null);
  const plot = document.getElementById("plot");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let axis = timed ? "seconds" : "macs";
  let chosen = null;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // ---- plot ----------------------------------------------------------------------------------------------------

  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function hover(point) {
    const figure = Object.fromEntries(point.figures.map(([key, , value]) => [key, value]));
    const lines = [
      `<b>${plain(point.name)}</b>`,
      `reward ${figure.reward} (${point.low.toFixed(3)} to ${point.high.toFixed(3)})`,
      `${figure.seconds} a picture, ${figure.ratio} as fast`,
      `${figure.macs}MACs, ${figure.share} of uncached`,
    ];
    return (point.seconds === null ? lines.filter((_, line) => line !== 2) : lines).join("<br>");
  }

  function trace(kind) {
    const points = page.points.filter((point) => point.kind === kind.kind && point[axis] !== null);
    points.sort((one, other) => one[axis] - other[axis]);
    const paint = colour(kind.kind);
    return {
      type: "scatter",
      name: kind.label,
      meta: kind.kind,
      mode: kind.line ? "lines+markers" : "markers",
      x: points.map((point) => point[axis]),
      y: points.map((point) => point.reward),
      customdata: points.map((point) => point.name),
      text: points.map(hover),
      hovertemplate: "%{text}<extra></extra>",
      line: { color: paint, width: 2, dash: kind.line || "solid" },
      marker: { color: paint, symbol: kind.symbol, size: kind.size, line: { color: paint, width: kind.symbol.endsWith("open") ? 1.5 : 0 } },
      error_y: {
        type: "data",
        symmetric: false,
        array: points.map((point) => point.high - point.reward),
        arrayminus: points.map((point) => point.reward - point.low),
        color: `${paint}${kind.faint ? "55" : "88"}`,
        thickness: 1.2,
        width: 0,
      },
    };
  }

  // A staircase through the runs that no other beats in seconds and reward, where a page has one.
  function stairs() {
    const points = axis === "seconds" ? page.line.map((name) => byName.get(name)) : [];
    return {
      type: "scatter",
      meta: "stairs",
      mode: "lines",
      x: points.map((point) => point.seconds),
      y: points.map((point) => point.reward),
      line: { color: colour("ink"), width: 1.5, shape: "hv" },
      hoverinfo: "skip",
    };
  }

  function ring() {
    const shown = chosen !== null && chosen[axis] !== null;
    return {
      type: "scatter",
      meta: "chosen",
      mode: "markers",
      x: shown ? [chosen[axis]] : [],
      y: shown ? [chosen.reward] : [],
      marker: { symbol: "circle-open", size: 24, color: colour("ink"), line: { width: 2 } },
      hoverinfo: "skip",
    };
  }

  function layout() {
    const lines = { gridcolor: colour("rule"), zeroline: false, automargin: true };
    const words = axis === "seconds" ? { text: "Seconds per picture" } : { text: "MACs per picture" };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("muted") },
      margin: { l: 52, r: 12, t: 14, b: 48 },
      xaxis: { ...lines, title: words, rangemode: "tozero", exponentformat: "SI", ticksuffix: axis === "seconds" ? " s" : "" },
      yaxis: { ...lines, title: { text: "Reward on held-out prompts" } },
      showlegend: false,
      hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("rule"), align: "left", font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 12 } },
      hovermode: "closest",
      hoverdistance: 24,
      dragmode: false,
    };
  }

  function draw() {
    // The last trace lies on top: uncached and the front come after seeds.
    const traces = [stairs(), ...page.kinds.toReversed().map(trace)].filter((one) => one.x.length);
    Plotly.react(plot, [...traces, ring()], layout(), { displayModeBar: false, responsive: true });
  }

  // ---- detail --------------------------------------------------------------------------------------------------

  function showFigures(point) {
    const rows = point.figures.map(([key, label, value, remark]) =>
      element("div", { "data-figure": key },
        element("dt", {}, label), element("dd", {}, element("span", { class: "value" }, value), element("small", {}, remark))));
    document.getElementById("figures").replaceChildren(...rows);
  }

  function showPictures(point) {
    const area = document.getElementById("pictures");
    const alone = point === uncached || !uncached.pictures.length;
    area.classList.toggle("single", alone);
    area.classList.toggle("wide", page.wide);
    area.replaceChildren(...point.pictures.map((picture, place) => {
      const prompt = page.prompts[place];
      const side = (source, by, mark) => element("div", { class: mark }, element("img", { src: source, alt: `${by}: ${prompt}` }), by);
      const pair = element("div", { class: "pair" });
      if (!alone) pair.append(side(uncached.pictures[place], uncached.name, "that"));
      pair.append(side(picture, point.name, "this"));
      return element("figure", { "data-prompt": String(place) }, pair, element("figcaption", {}, prompt));
    }));
    const note = !point.pictures.length ? "No pictures were kept for this run."
      : alone ? "Same prompts and seeds for every run."
      : `${page.wide ? "Above" : "Left"} the uncached picture, ${page.wide ? "below" : "right"} this run; same prompt, same seed.`;
    document.getElementById("pictures-note").textContent = note;
  }

  function slug(name) {
    return name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[-.]+|[-.]+$/g, "") || "plan";
  }

  function choose(name, focus) {
    const point = byName.get(name);
    if (point === undefined) return;
    chosen = point;
    document.getElementById("detail").dataset.point = name;
    document.getElementById("chosen-name").textContent = name;
    document.getElementById("chosen-kind").replaceChildren(
      element("span", { class: `swatch ${point.kind}`, "aria-hidden": "true" }), `${kinds.get(point.kind).label} · ${point.steps} steps`);
    showFigures(point);
    showPictures(point);
    festinaSchedule(point);
    document.getElementById("told").textContent = "";
    for (const row of document.querySelectorAll("#table tbody tr")) {
      const here = row.dataset.point === name;
      const button = row.querySelector(".choose");
      row.classList.toggle("chosen", here);
      button.setAttribute("aria-pressed", String(here));
      if (here && focus) button.focus();
    }
    // Replaced, not pushed: looking through points is no journey to walk back.
    location.replace(`#point=${encodeURIComponent(name)}`);
    draw();
  }

  function fromHash() {
    const found = /^#point=(.+)$/.exec(location.hash);
    try {
      return found !== null && byName.has(decodeURIComponent(found[1])) ? decodeURIComponent(found[1]) : null;
    } catch {
      return null; // A hash that is no text of ours.
    }
  }

  function neighbour(by) {
    const place = page.points.indexOf(chosen) + by;
    return page.points[(place + page.points.length) % page.points.length].name;
  }

  // ---- plan file -----------------------------------------------------------------------------------------------

  async function copy() {
    const told = document.getElementById("told");
    try {
      await navigator.clipboard.writeText(chosen.plan.json);
      told.textContent = "Copied.";
    } catch {
      told.textContent = "The browser does not allow copying here; download the plan instead.";
    }
  }

  function download() {
    const address = URL.createObjectURL(new Blob([chosen.plan.json], { type: "application/json" }));
    element("a", { href: address, download: `${slug(chosen.name)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    document.getElementById("told").textContent = `Saved as ${slug(chosen.name)}.json.`;
  }

  // ---- start ---------------------------------------------------------------------------------------------------

  for (const input of document.querySelectorAll("#axis input")) {
    input.checked = input.value === axis;
    input.disabled = input.value === "seconds" && !timed;
    input.addEventListener("change", () => { axis = input.value; draw(); });
  }
  const body = document.querySelector("#table tbody");
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row !== null) choose(row.dataset.point, false);
  });
  body.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    choose(neighbour(by), true);
  });
  document.getElementById("previous").addEventListener("click", () => choose(neighbour(-1), false));
  document.getElementById("next").addEventListener("click", () => choose(neighbour(1), false));
  document.getElementById("copy").addEventListener("click", copy);
  document.getElementById("download").addEventListener("click", download);
  window.addEventListener("hashchange", () => {
    const name = fromHash();
    if (name !== null && name !== chosen.name) choose(name, false);
  });
  dark.addEventListener("change", draw);
  choose(fromHash() ?? page.first, false);
  plot.on("plotly_click", (event) => {
    const name = event.points[0].customdata;
    if (name !== undefined) choose(name, false);
  });
  document.documentElement.dataset.ready = "true";
})();
