"use strict";

function runPage(run) {
  const dataset = DATASETS.get(run.dataset), others = runsOf(dataset);
  const place = standing(others, dataset.leading).get(run.name), floor = dataset.floors[dataset.leading];
  const facts = [
    [inWords(dataset.leading), [run.values[dataset.leading].text, " ", badge(place)]],
    floor && ["Real images get", floor.text],
    ["Trained for", `${figure(run.kimg)} kimg${seconds(run) === null ? "" : `, ${duration(seconds(run))}`}`],
    seconds(run) !== null && ["Speed", `${Math.round(1000 * run.kimg / seconds(run)).toLocaleString("en")} images/s`],
    ended(run) && ["Finished", ended(run)],
    local(run).version && ["Registered as", h("code", local(run).version)],
    commit(run) && ["Commit", h("code", commit(run))],
    ["Size of the sampler", `${run.megabytes} MB`],
  ].filter(Boolean);
  return [
    h("nav.trail", { "aria-label": "You are here" }, h("a", { href: "#" }, "All runs"), " / ", dataset.title),
    h("h1", h("i.dot", { style: `background:${colour(run)}` }), run.name),
    h("p.lead", `${run.model} · ${dataset.title}`, h("span.quiet", ` · ${run.source}`)),
    local(run).playground && h("p", h("a.button", { href: local(run).playground }, "Play with it")),
    run.notes.map(text => h("p", text)),
    dataset.cautions.map(text => h("p.caution", `${text}.`)),
    run.copies.length > 0 && h("p.caution", `${run.copies.length} of the ${run.gallery.drawn.length} samples below `,
      "are copies of training images: they are marked, and come first when ordered by nearness."),
    h("dl.facts", facts.map(([name, value]) => h("div", h("dt", name), h("dd", value)))),
    section("Real and generated", gallery([run], 100),
      h("p.quiet", "The first samples of the draw, not chosen",
        run.gallery.drawn[0].distances.length > 0 && ", and those of it that are nearest to a training image",
        ". An edge marks samples that the classifier takes for another class. Choose one to see its neighbours and how to draw it again.")),
    section("Figures", h("div.groups", metricGroups([run])), reading(dataset)),
    run.by_class.length > 0 && section("Classes", h("div.two", h("div.scroll", { tabindex: 0, role: "region", "aria-label": "Classes" }, classChart(run)), confusionMatrix(run))),
    run.gallery.explained.length > 0 && section("Map", featureMap(run)),
    section("Training", trainingSlider([run]), curves([run], curvesOf([run])), curveNote(run)),
    run.pictures.length > 0 && section("Latents", h("div.pictures", run.pictures.map(one =>
      h("figure", h("img.pixels", { src: picture(run, one.image), alt: one.caption }), h("figcaption", one.caption))))),
    section("Recipe", folded("Every parameter of the training",
      h("dl.list", Object.entries(run.recipe).map(([key, value]) => [h("dt", key), h("dd", String(value))]))),
    folded("Digests", h("dl.list", Object.entries(run.digests).map(([key, value]) => [h("dt", key), h("dd", h("code", value))])))),
  ];
}

function curveNote(run) {
  return h("p.quiet", "Distances over training are of the few pictures above: they show the way, the figures the result.",
    run.values.elbo && " During training a VAE draws from N(0, I): its prior is fitted at the end.");
}
