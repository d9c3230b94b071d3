"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = new Map(DATA.runs.map(run => [run.name, run]));
const DATASETS = new Map(DATA.datasets.map(dataset => [dataset.name, dataset]));
const COLOURS = 8; // in style.css

// What local.js beside the page says of a run: version, commit, when it ended, and seconds at kimg.
function local(run) {
  return (typeof LOCAL === "undefined" ? {} : LOCAL)[run.place] || {};
}

function seconds(run) {
  const known = local(run).seconds;
  return known ? known[known.length - 1][1] : null;
}

// Seconds of training when `kimg` had been seen, between the lines of the record.
function secondsAt(run, kimg) {
  let before = [0, 0];
  for (const line of local(run).seconds) {
    if (line[0] >= kimg) return before[1] + (line[1] - before[1]) * (kimg - before[0]) / (line[0] - before[0]);
    before = line;
  }
  return before[1];
}

function ended(run) {
  const { unix } = local(run);
  return unix ? new Date(unix * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC" : null;
}

function commit(run) {
  const { commit, clean } = local(run);
  return commit ? commit.slice(0, 10) + (clean ? "" : " with changes") : null;
}

function duration(value) {
  if (value === null) return "–";
  if (value < 100) return `${value.toFixed(0)} s`;
  return value < 6000 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;
}

function figure(value) {
  return Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// A run has the same colour everywhere, but beside others one that is none of theirs.
let besides = [];
function colour(run) {
  const among = besides.includes(run) ? besides.indexOf(run) : DATASETS.get(run.dataset).runs.indexOf(run.name);
  return `var(--run-${among % COLOURS})`;
}

// URLs of a run's pictures, made when they are asked for: a page of thirty runs opens as fast as one of two.
const urls = new Map();
function picture(run, name) {
  const key = `${run.name}/${name}`;
  if (!urls.has(key)) {
    if (!run.images) {
      const scripts = [...document.querySelectorAll("script[data-images]")];
      run.images = JSON.parse(scripts.find(one => one.dataset.images === run.name).textContent);
    }
    const data = run.images[name];
    if (!data) return null;
    const [head, content] = data.split(",");
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    urls.set(key, URL.createObjectURL(new Blob([bytes], { type: head.slice(5, head.indexOf(";")) })));
  }
  return urls.get(key);
}

function className(run, label) {
  return run.class_names[label] ?? `class ${label}`;
}

// The smaller, the better, whichever way a metric goes.
function cost(metric, value) {
  const { better } = DATA.metrics[metric];
  return better === "low" ? value : better === "high" ? -value : Math.abs(value - Number(better));
}

function differ(a, b) {
  return Math.abs(a.mean - b.mean) >= DATA.sure * Math.hypot(a.error, b.error);
}

// Which of some runs on one data set is best by a metric, and which cannot be told apart from it.
function standing(runs, metric) {
  const having = runs.filter(run => run.values[metric]);
  const known = DATA.metrics[metric].better && !DATASETS.get(runs[0].dataset).incomparable[metric];
  if (having.length < 2 || !known || new Set(having.map(run => run.dataset)).size > 1) return new Map();
  having.sort((a, b) => cost(metric, a.values[metric].mean) - cost(metric, b.values[metric].mean));
  const [best, ...rest] = having;
  const tied = rest.filter(run => !differ(best.values[metric], run.values[metric]));
  const found = new Map(tied.map(run => [run.name, "within the noise"]));
  return found.set(best.name, tied.length ? "within the noise" : "best");
}

function plain(metric) {
  const { title } = DATA.metrics[metric];
  return title[0].toUpperCase() + title.slice(1);
}

function inWords(metric) {
  const { features } = DATA.metrics[metric];
  return plain(metric) + (features ? ` (${features})` : "");
}

function better(metric) {
  const { better } = DATA.metrics[metric];
  return { low: "lower is better", high: "higher is better" }[better] ?? (better && `near ${better} is better`);
}

function runsOf(dataset) {
  return dataset.runs.map(name => RUNS.get(name));
}

function runLink(run) {
  return `#run/${encodeURIComponent(run.name)}`;
}
