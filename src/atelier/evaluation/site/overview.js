"use strict";

const chosen = new Set(); // runs to be compared
const MOST_COMPARED = 4;

function overview() {
  const state = { text: "", dataset: "", model: "", sort: "figure", down: false };
  const models = [...new Set(DATA.runs.map(run => run.model))];
  const sections = h("div"), count = h("p.quiet", { role: "status" });
  const tray = h("div.tray", { role: "region", "aria-label": "Runs to compare" });

  function matches(run) {
    const words = [run.name, run.model, run.source, DATASETS.get(run.dataset).title,
      ...Object.entries(run.recipe).map(([key, value]) => `${key}=${value}`)].join(" ").toLowerCase();
    return (!state.dataset || run.dataset === state.dataset) && (!state.model || run.model === state.model)
      && state.text.toLowerCase().split(/\s+/).every(word => words.includes(word));
  }

  function show() {
    const found = DATA.datasets.map(dataset => [dataset, runsOf(dataset).filter(matches)]).filter(([, runs]) => runs.length);
    sections.replaceChildren(...found.map(([dataset, runs]) => datasetSection(dataset, runs, state, sortBy)));
    const shown = found.reduce((sum, [, runs]) => sum + runs.length, 0);
    count.textContent = shown === DATA.runs.length ? "" : shown ? `${shown} of ${DATA.runs.length} runs` : "No run matches.";
    showTray();
  }

  function sortBy(key) {
    state.down = state.sort === key ? !state.down : false;
    state.sort = key;
    show();
    const header = sections.querySelector(`button[data-sort="${key}"]`);
    if (header) header.focus();
  }

  function showTray() {
    const names = [...chosen], datasets = new Set(names.map(name => RUNS.get(name).dataset));
    tray.hidden = names.length === 0;
    tray.replaceChildren(h("span", names.join(", ")),
      names.length > 1 && datasets.size === 1
        ? h("a.button", { href: `#compare/${names.map(encodeURIComponent).join("/")}` }, `Compare ${names.length} runs`)
        : h("span.quiet", datasets.size > 1 ? "Choose runs on one data set." : `Choose up to ${MOST_COMPARED}.`),
      h("button", { type: "button", click: () => { chosen.clear(); show(); } }, "Clear"));
  }

  sections.addEventListener("change", event => {
    if (event.target.type !== "checkbox") return;
    if (event.target.checked && chosen.size === MOST_COMPARED) event.target.checked = false;
    else if (event.target.checked) chosen.add(event.target.value);
    else chosen.delete(event.target.value);
    showTray();
  });
  const search = h("input", { type: "search", placeholder: "name, model, seed=1 …", input: () => { state.text = search.value.trim(); show(); } });
  const filters = DATA.runs.length > 1 && h("div.controls.filters",
    labelled("Search", search),
    DATA.datasets.length > 1 && labelled("Data set", select([["", "All"], ...DATA.datasets.map(one => [one.name, one.title])], "",
      value => { state.dataset = value; show(); })),
    models.length > 1 && labelled("Model", select([["", "All"], ...models.map(name => [name, name])], "",
      value => { state.model = value; show(); })),
    h("div.narrow", labelled("Sort by", select(columnsOf(DATA.datasets[0]).map(one => [one.key, one.title]), "figure", sortBy))));
  show();
  return [h("h1", DATA.title), filters, count, sections, tray];
}

// The columns of a table of runs: a title, what it is sorted by, and what it shows.
function columnsOf(dataset) {
  const runs = runsOf(dataset);
  const features = dataset.leading.includes("_") ? DATA.metrics[dataset.leading].features : null;
  const beside = ["coverage", "label_agreement", "nearest_train_ratio"].map(kind =>
    Object.keys(DATA.metrics).find(name => name === kind || name === `${kind}_${features}`
      || (kind === "coverage" && name.startsWith("coverage_"))));
  const ofMetric = (metric, key) => ({ key, title: plain(metric), tip: inWords(metric), metric,
    value: run => (run.values[metric] ? cost(metric, run.values[metric].mean) : Infinity) });
  return [
    { key: "name", title: "Run", value: run => run.name },
    ofMetric(dataset.leading, "figure"),
    ...beside.filter(metric => metric && runs.some(run => run.values[metric])).map(metric => ofMetric(metric, metric)),
    { key: "kimg", title: "kimg", value: run => run.kimg, text: run => figure(run.kimg) },
    runs.some(run => seconds(run) !== null) && { key: "time", title: "Time", value: run => seconds(run) ?? Infinity, text: run => duration(seconds(run)) },
    runs.some(ended) && { key: "date", title: "Trained", value: run => ended(run) ?? "~", text: run => (ended(run) ?? "–").slice(0, 10) },
  ].filter(Boolean);
}

function datasetSection(dataset, runs, state, sortBy) {
  const columns = columnsOf(dataset), all = runsOf(dataset);
  const by = columns.find(column => column.key === state.sort) || columns[1];
  const order = [...runs].sort((a, b) => {
    const [x, y] = [by.value(a), by.value(b)];
    return (x < y ? -1 : x > y ? 1 : 0) * (state.down ? -1 : 1);
  });
  const id = `data-${dataset.name}`;
  return h("section.block", { "aria-labelledby": id },
    h("h2", { id }, dataset.title),
    dataset.cautions.map(text => h("p.caution", `${text}.`)),
    dataset.text.length > 0 && h("p.conclusion", dataset.text[0]),
    dataset.text.length > 1 && h("ul.points", dataset.text.slice(1).map(text => h("li", text))),
    strips(dataset, order[0]),
    h("table.runs",
      h("thead", h("tr", h("th", { scope: "col" }, h("span.hidden", "Compare")), columns.map(column =>
        h("th", { scope: "col", title: column.tip, "aria-sort": column === by ? (state.down ? "descending" : "ascending") : null },
          h("button.sort", { type: "button", "data-sort": column.key, click: () => sortBy(column.key) }, column.title))))),
      h("tbody", order.map(run => h("tr",
        h("td.pick", h("input", { type: "checkbox", value: run.name, checked: chosen.has(run.name), "aria-label": `Compare ${run.name}` })),
        h("th", { scope: "row" }, h("a.run", { href: runLink(run) }, h("i.dot", { style: `background:${colour(run)}` }), run.name),
          drawnTiles(run, null, 6), run.copies.length > 0 && h("span.badge.alarm", "copies")),
        columns.slice(1).map(column => cell(run, column, all, dataset)))))),
    reading(dataset));
}

function cell(run, column, all, dataset) {
  const attributes = { "data-title": column.title };
  if (!column.metric) return h("td", attributes, column.text(run));
  const value = run.values[column.metric];
  if (!value) return h("td", attributes, "–");
  const isLeading = column.metric === dataset.leading, place = standing(all, column.metric).get(run.name);
  return h(isLeading ? "td.leading" : "td", attributes,
    isLeading && bar(run, column.metric, all.filter(one => one.values[column.metric])),
    h("span.number", value.text), (isLeading || place === "best") && badge(place));
}

// Real images and samples of the first run in the table, class beside class.
function strips(dataset, run) {
  const found = positions(run.gallery.drawn, "asked", null);
  if (run.class_names.length) byClass(found, index => run.gallery.drawn[index].asked);
  const drawn = found.slice(0, 30), real = realBeside(run, drawn);
  return h("div.strips",
    h("figure", h("figcaption", "Real"), tiles("real images", run, real, realTile)),
    h("figure", h("figcaption", run.name), tiles(`samples of ${run.name}`, run, drawn, drawnTile)));
}
