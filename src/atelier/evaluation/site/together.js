"use strict";

// Two to four runs on one data set, side by side.
function togetherPage(runs) {
  const dataset = DATASETS.get(runs[0].dataset);
  return [
    h("nav.trail", { "aria-label": "You are here" }, h("a", { href: "#" }, "All runs"), " / ", dataset.title),
    h("h1", runs.map((run, number) => [number > 0 && h("span.quiet", " · "), h("a.run", { href: runLink(run) },
      h("i.dot", { style: `background:${colour(run)}` }), run.name)])),
    dataset.cautions.map(text => h("p.caution", `${text}.`)),
    h("p.conclusion", verdict(runs, dataset)),
    section("Real and generated", gallery(runs, 60)),
    section("Figures", h("div.groups", metricGroups(runs)), reading(dataset)),
    section("Training", trainingSlider(runs), curves(runs, curvesOf(runs))),
    section("What differs", differences(runs)),
  ];
}

function verdict(runs, dataset) {
  const metric = dataset.leading, reason = dataset.incomparable[metric];
  if (reason) return `These runs cannot be compared by ${plain(metric)}: ${reason}.`;
  const places = standing(runs, metric), text = run => `${run.name} (${run.values[metric].text})`;
  const best = runs.filter(run => places.get(run.name) === "best");
  const tied = runs.filter(run => places.get(run.name) === "within the noise");
  const name = inWords(metric);
  const rest = runs.filter(run => places.get(run.name) === undefined && run.values[metric]);
  const others = rest.length > 0 &&
    ` ${rest.map(text).join(" and ")} ${rest.length > 1 ? "are" : "is"} further away, beyond the noise.`;
  return (best.length ? `${text(best[0])} comes closest to the real images by ${name}.`
    : `${tied.map(text).join(" and ")} cannot be told apart by ${name}: the difference is within the noise.`) + (others || "");
}

function differences(runs) {
  const facts = run => ({ model: run.model, ...run.recipe, "size of the sampler": `${run.megabytes} MB`,
    "time of training": duration(seconds(run)), finished: ended(run) ?? "–",
    version: local(run).version ?? "–", commit: commit(run) ?? "–" });
  const all = runs.map(facts), keys = [...new Set(all.flatMap(Object.keys))];
  const rows = keys.map(key => [key, ...all.map(one => (one[key] === undefined ? "–" : String(one[key])))])
    .filter(([, ...values]) => new Set(values).size > 1);
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": "What differs" }, h("table.plain",
    h("thead", h("tr", h("td"), runs.map(run => h("th", { scope: "col" }, run.name)))),
    h("tbody", rows.map(([key, ...values]) => h("tr", h("th", { scope: "row" }, key), values.map(value => h("td", value)))))));
}
