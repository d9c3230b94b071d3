"use strict";

// A text of the table of metrics, whose names of files and parameters stand between backquotes.
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", part) : part));
}

function badge(text) {
  return text && h(text === "best" ? "span.badge.best" : "span.badge", text);
}

// From 0 to the largest value among some runs and their floor; shares go to 1.
function scale(metric, runs) {
  const values = runs.map(run => run.values[metric]).concat(DATASETS.get(runs[0].dataset).floors[metric])
    .filter(Boolean);
  const ends = values.flatMap(value => [value.mean - value.deviation, value.mean + value.deviation]);
  const low = Math.min(0, ...ends), high = Math.max(...ends, 0);
  const top = DATA.metrics[metric].better === "high" && low === 0 && high > 0.5 && high <= 1.05 ? 1 : high;
  return value => Math.max(0, Math.min(100, 100 * (value - low) / (top - low || 1)));
}

// A bar from 0 with its deviation; a mark where the real images are, thin ones where other runs are.
function bar(run, metric, runs, others = []) {
  const at = scale(metric, runs), value = run.values[metric];
  const floor = DATASETS.get(run.dataset).floors[metric];
  const [start, end] = [at(0), at(value.mean)].sort((a, b) => a - b);
  const [left, right] = [at(value.mean - value.deviation), at(value.mean + value.deviation)];
  return h("div.bar", { "aria-hidden": "true" },
    h("i.fill", { style: `left:${start}%;width:${end - start}%;background:${colour(run)}` }),
    others.map(other => h("i.other", { style: `left:${at(other.values[metric].mean)}%`, title: other.name })),
    h("i.deviation", { style: `left:${left}%;width:${right - left}%` }),
    floor && h("i.floor", { style: `left:${at(floor.mean)}%`, title: `real images: ${floor.text}` }));
}

// Metrics by group, each group with what it asks; draw(metrics) shows those of a group.
function byGroup(metrics, heading, draw) {
  return Object.entries(DATA.groups).map(([group, question]) => {
    const those = metrics.filter(metric => DATA.metrics[metric].group === group);
    return those.length > 0 && h("section.group",
      h(heading, group[0].toUpperCase() + group.slice(1)), h("p.quiet", question), draw(those));
  });
}

// The metrics of some runs on one data set, by group; of a single one beside the others on its data set.
function metricGroups(runs) {
  const dataset = DATASETS.get(runs[0].dataset);
  const all = runs.length > 1 ? runs : runsOf(dataset);
  const measured = Object.keys(DATA.metrics).filter(metric => runs.some(run => run.values[metric]));
  return byGroup(measured, "h3", metrics => metrics.map(metric => metricRow(metric, runs, all, dataset)));
}

// What a metric means, in a sentence.
function meaning(metric) {
  return [better(metric) && h("b", `${better(metric)}: `), prose(DATA.metrics[metric].explanation), "."];
}

function metricRow(metric, runs, all, dataset) {
  const places = standing(all, metric), floor = dataset.floors[metric];
  const having = runs.filter(run => run.values[metric]);
  const others = run => (runs.length > 1 ? [] : all.filter(one => one !== run && one.values[metric]));
  return h("div.metric",
    h("h4", inWords(metric)),
    h("p.explanation", meaning(metric)),
    having.map(run => h("div.value",
      runs.length > 1 && h("span.who", h("i.dot", { style: `background:${colour(run)}` }), run.name),
      bar(run, metric, all.filter(one => one.values[metric]), others(run)),
      h("span.number", run.values[metric].text), badge(places.get(run.name)))),
    floor && h("p.quiet.floor-text", `real images: ${floor.text}`),
    dataset.incomparable[metric] && all.length > 1 &&
      h("p.caution", `Not comparable between these runs: ${dataset.incomparable[metric]}.`));
}

// What each metric of these runs means, by group.
function glossaryPage() {
  const list = metrics => h("dl.glossary",
    metrics.map(metric => [h("dt", inWords(metric), " ", h("code", metric)), h("dd", meaning(metric))]));
  return [h("h1", "What the figures mean"), byGroup(Object.keys(DATA.metrics), "h2", list)];
}

function reading(dataset) {
  const { conditions } = dataset;
  return h("p.quiet",
    `Each figure is the mean ± standard deviation of ${conditions.draws} draws of `,
    `${conditions.fakes.toLocaleString("en")} samples, against ${conditions.real.toLocaleString("en")} real `,
    `${conditions.real_split} images. The upright mark is where real training images are`,
    conditions.floor_images && ` (${conditions.floor_images.toLocaleString("en")} of them a draw)`,
    ", thin marks are other runs. Runs within the noise differ by less than ",
    `${DATA.sure} standard errors: do not choose by that figure. Of a run of one training ± says nothing of the luck of its seed.`);
}

// Each class: its distance, real images of it and samples that were asked to be of it.
function classChart(run) {
  if (!run.by_class.length) return null;
  const most = Math.max(...run.by_class.map(([, value]) => value));
  return h("table.classes",
    h("caption.quiet", "Fréchet distance of each class: the longer the bar, the further from the real images."),
    h("thead", h("tr", ["Class", "Real", "Generated", "Distance"].map(text => h("th", { scope: "col" }, text)))),
    h("tbody", run.by_class.map(([name, value]) => {
      const label = run.class_names.indexOf(name);
      return h("tr", h("th", { scope: "row" }, name),
        h("td", realTiles(run, label, 4)), h("td", drawnTiles(run, label, 4)),
        h("td.wide", h("div.bar", h("i.fill", { style: `left:0;width:${100 * value / most}%;background:${colour(run)}` })),
          h("span.number", figure(value))));
    })));
}

function confusionMatrix(run) {
  if (!run.confusion.length) return null;
  const names = run.class_names;
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": "Confusion matrix" }, h("table.confusion",
    h("caption.quiet", "Of the samples asked to be of a class (rows), how many the classifier sees as each (columns)."),
    h("thead", h("tr", h("td"), names.map(name => h("th", { scope: "col" }, name)))),
    h("tbody", run.confusion.map((row, asked) => {
      const total = row.reduce((sum, count) => sum + count, 0) || 1;
      return h("tr", h("th", { scope: "row" }, names[asked]), row.map((count, seen) => {
        const share = count / total;
        // faint shares are what a reader looks for: the square root brings them out
        const kind = asked === seen ? "right" : "wrong";
        return h(`td.${kind}`, { style: `--share:${Math.sqrt(share).toFixed(3)}`, title: `${names[asked]} seen as ${names[seen]}: ${count}` },
          count ? (share * 100 >= 0.95 ? `${Math.round(share * 100)}%` : "·") : "");
      }));
    }))));
}
