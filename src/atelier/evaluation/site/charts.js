"use strict";

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Curves of one or several runs over kimg or seconds, with a linear or a logarithmic axis.
function curves(runs, names) {
  const timed = runs.every(run => local(run).seconds);
  const state = { names: names[0], over: "kimg", axis: names[0][2] };
  const place = h("div.chart"), table = h("div.scroll", { tabindex: 0, role: "region", "aria-label": "Figures" });
  let chart = null;

  function series() {
    return runs.flatMap(run => state.names[1].filter(name => run.curves[name]).map((name, number) => ({
      label: runs.length > 1 ? run.name : curveName(name),
      colour: runs.length > 1 ? colour(run) : `var(--run-${number % COLOURS})`,
      points: run.curves[name].map(([kimg, value]) => [state.over === "kimg" ? kimg : secondsAt(run, kimg), value]),
    })));
  }

  function draw() {
    const all = series(), values = all.flatMap(one => one.points.map(([, value]) => value));
    const joined = uPlot.join(all.map(one => [one.points.map(([x]) => x), one.points.map(([, y]) => y)]));
    const positive = values.every(value => value > 0);
    const nearest = Math.min(...values.map(Math.abs).filter(Boolean));
    const unit = state.over === "kimg" ? "kimg" : "s";
    const isPower = mark => mark === 0 || Math.abs(Math.log10(Math.abs(mark)) - Math.round(Math.log10(Math.abs(mark)))) < 1e-6;
    // of a logarithmic axis over some powers of ten, a line at each of them is enough
    const lines = (_, marks) => state.axis === "log" && marks.filter(isPower).length > 2 ? marks.map(mark => isPower(mark) ? mark : null) : marks;
    const axis = { stroke: () => style("--quiet"), grid: { stroke: () => style("--line"), width: 1 },
      ticks: { stroke: () => style("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const scaleOf = state.axis === "log" ? { distr: positive ? 3 : 4, asinh: nearest || 1 } : {};
    if (chart) chart.destroy();
    chart = new uPlot({
      width: place.clientWidth || 600, height: 300,
      scales: { x: { time: false }, y: scaleOf },
      axes: [{ ...axis, label: unit, labelSize: 20, labelFont: axis.font }, { ...axis, size: 62,
        grid: { ...axis.grid, filter: lines }, ticks: { ...axis.ticks, filter: lines },
        values: (_, marks) => marks.map(mark => (mark === null ? "" : figure(mark))) }],
      series: [{ label: unit, value: (_, value) => (value === null ? "–" : figure(value)) }, ...all.map(one => ({
        label: one.label, stroke: () => resolve(one.colour), width: 2, spanGaps: true,
        points: { show: one.points.length < 40, size: 5 },
        value: (_, value) => (value === null || value === undefined ? "–" : figure(value)),
      }))],
      cursor: { points: { size: 8 }, focus: { prox: 24 } }, focus: { alpha: 0.35 },
    }, joined, place);
    chart.root.querySelectorAll("canvas").forEach(canvas => set(canvas, { role: "img",
      "aria-label": `${state.names[0]} over ${unit}: ${all.map(one => one.label).join(", ")}; the figures stand below` }));
    const rows = joined[0].map((x, row) => [x, ...joined.slice(1).map(column => column[row])]);
    table.replaceChildren(h("table.plain",
      h("thead", h("tr", [unit, ...all.map(one => one.label)].map(text => h("th", { scope: "col" }, text)))),
      h("tbody", rows.filter((_, row) => row % Math.ceil(rows.length / 50) === 0 || row === rows.length - 1).map(row =>
        h("tr", row.map(value => h("td", value === null || value === undefined ? "" : figure(value))))))));
  }

  function resolve(value) {
    return style(value.slice(4, -1));
  }

  new ResizeObserver(() => {
    if (!chart) { if (place.clientWidth) draw(); } else if (chart.width !== place.clientWidth && place.clientWidth) {
      chart.setSize({ width: place.clientWidth, height: 300 });
    }
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart && place.isConnected && chart.redraw());

  const axes = choice("Vertical axis", [["linear", "Linear"], ["log", "Logarithmic"]], state.axis,
    value => { state.axis = value; draw(); });
  return h("div.curves", h("div.controls",
    names.length > 1 && labelled("Curves", select(names.map((one, number) => [String(number), one[0]]), "0",
      value => { state.names = names[Number(value)]; draw(); })),
    timed && choice("Horizontal axis", [["kimg", "by kimg"], ["seconds", "by seconds"]], "kimg",
      value => { state.over = value; draw(); }),
    axes), place, folded("The same as a table", table));
}

function curveName(name) {
  if (DATA.metrics[name]) return inWords(name);
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

// What there is to draw of some runs: a title, names of curves, and the axis that suits them.
function curvesOf(runs) {
  const metric = DATASETS.get(runs[0].dataset).over_training;
  const distance = [`${inWords(metric)} of the pictures drawn during training`, [metric], "log"];
  const names = [...new Set(runs.flatMap(run => Object.keys(run.curves)))].filter(name => name !== metric);
  if (runs.length > 1) return [distance, ...names.map(name => [curveName(name), [name], "linear"])];
  const isValidation = name => name.startsWith("validation_"); // falls by orders of magnitude
  const isShare = name => !name.endsWith("loss") && runs[0].curves[name].every(([, value]) => value >= 0 && value <= 1);
  const groups = [["Losses and bounds", names.filter(name => !isShare(name) && !isValidation(name)), "linear"],
    ["Shares between 0 and 1", names.filter(name => isShare(name) && !isValidation(name)), "linear"],
    ["Validation", names.filter(isValidation), "log"]];
  return [distance, ...groups.filter(group => group[1].length)];
}
