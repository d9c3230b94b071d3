"use strict";

// The page by its address: #run/NAME, #compare/NAME/NAME, #glossary, else all runs.
function show() {
  const [kind, ...names] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const runs = names.map(name => RUNS.get(name)).filter(Boolean).slice(0, MOST_COMPARED);
  const isOne = new Set(runs.map(run => run.dataset)).size === 1;
  besides = kind === "compare" ? runs : [];
  const content = kind === "run" && runs.length ? runPage(runs[0])
    : kind === "compare" && isOne && runs.length > 1 ? togetherPage(runs)
    : kind === "glossary" ? glossaryPage() : overview();
  document.title = runs.length ? `${runs.map(run => run.name).join(", ")} – ${DATA.title}` : DATA.title;
  document.getElementById("main").replaceChildren(...content.flat(Infinity).filter(one => one instanceof Node));
  scrollTo(0, 0);
}

function frame() {
  document.querySelector(".skip").addEventListener("click", event => {
    event.preventDefault(); // its address would be another page's
    document.getElementById("main").focus();
  });
  document.querySelector("header.top").append(h("a.home", { href: "#" }, "Atelier"),
    h("span.quiet", `${DATA.runs.length} runs on ${DATA.datasets.length === 1 ? DATA.datasets[0].title : `${DATA.datasets.length} data sets`}`));
  document.querySelector("footer.foot").append(
    h("p", h("a", { href: "#glossary" }, "What the figures mean"), "."),
    h("p", "Made by ", h("code", "atelier compare"), ". The figures are in ", h("a", { href: "summary.json" }, "summary.json"),
      ". Charts by uPlot, © Leon Sorokin, MIT License."));
}

// whatever is folded is printed
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
addEventListener("hashchange", () => {
  show();
  document.getElementById("main").focus({ preventScroll: true });
});
frame();
show();
