"use strict";

// Real images and samples on the plane of the two principal components of the real ones' features.
function featureMap(run) {
  const { drawn, real, explained } = run.gallery;
  if (!explained.length) return null;
  const points = [
    ...real.map((one, index) => ({ kind: "real", index, label: one.label, place: one.place })),
    ...drawn.map((one, index) => ({ kind: "drawn", index, label: one.asked, place: one.place })),
  ].filter(point => point.place);
  const state = { label: null, show: "both", here: null };
  const canvas = h("canvas", { tabindex: 0, role: "application", "aria-label":
    "Map of real images and samples; the arrow keys go from sample to sample, Enter opens one" });
  const tip = h("div.tip", { role: "status" });
  tip.hidden = true;
  const frame = h("div.map", canvas, tip);
  const ends = axis => {
    const values = points.map(point => point.place[axis]);
    return [Math.min(...values), Math.max(...values)];
  };
  const [[left, right], [low, high]] = [ends(0), ends(1)];
  const shown = () => points.filter(point => (state.show === "both" || state.show === point.kind)
    && (state.label === null || point.label === state.label));

  function at(point) {
    const pad = 16, { clientWidth: width, clientHeight: height } = canvas;
    return [pad + (point.place[0] - left) / (right - left || 1) * (width - 2 * pad),
      height - pad - (point.place[1] - low) / (high - low || 1) * (height - 2 * pad)];
  }

  function draw() {
    const { clientWidth: width, clientHeight: height } = canvas, ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const colours = { real: style("--quiet"), drawn: style(colour(run).slice(4, -1)) };
    for (const point of shown()) {
      const [x, y] = at(point);
      const isCopy = point.kind === "drawn" && run.copies.includes(drawn[point.index].index);
      pen.beginPath();
      pen.arc(x, y, isCopy ? 7 : 3.5, 0, 2 * Math.PI);
      pen.globalAlpha = point.kind === "real" ? 0.55 : 0.85;
      if (point.kind === "real") {
        pen.strokeStyle = colours.real;
        pen.lineWidth = 1.25;
        pen.stroke();
      } else {
        pen.fillStyle = isCopy ? style("--alarm") : colours.drawn;
        pen.fill();
      }
    }
    if (state.here) {
      pen.globalAlpha = 1;
      pen.strokeStyle = style("--ink");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...at(state.here), 8, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  function point(to) {
    state.here = to;
    tip.hidden = !to;
    draw();
    if (!to) return;
    const isReal = to.kind === "real";
    const tile = isReal ? realTile(run, to.index) : drawnTile(run, to.index);
    const text = isReal ? `Real image${to.label === null ? "" : `, ${className(run, to.label)}`}` : sampleName(run, to.index);
    tip.replaceChildren(tile, h("span", text));
    const [x, y] = at(to);
    tip.style.left = `${Math.min(x + 12, canvas.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.min(y + 12, canvas.clientHeight - tip.offsetHeight - 4)}px`;
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const near = shown().map(one => {
      const [x, y] = at(one);
      return [Math.hypot(x - event.clientX + box.left, y - event.clientY + box.top), one];
    }).sort((a, b) => a[0] - b[0])[0];
    return near && near[0] < 14 ? near[1] : null;
  }

  function open(to) {
    if (to && to.kind === "drawn") openSample(run, to.index, shown().filter(one => one.kind === "drawn").map(one => one.index));
  }

  set(canvas, {
    pointermove: event => point(under(event)),
    pointerleave: () => point(null),
    click: event => open(under(event)),
    blur: () => point(null),
    keydown: event => {
      const samples = shown().filter(one => one.kind === "drawn");
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (by) {
        event.preventDefault();
        point(samples[(samples.indexOf(state.here) + by + samples.length) % samples.length]);
      } else if (event.key === "Enter") {
        event.preventDefault(); // or it would press the first button of what it opens
        open(state.here);
      }
    },
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => frame.isConnected && draw());
  const classes = run.class_names.length > 0 && run.class_names.length <= 30 && labelled("Class", select(
    [["", "All classes"], ...run.class_names.map((name, label) => [String(label), name])], "",
    value => { state.label = value === "" ? null : Number(value); point(null); }));
  const share = explained.reduce((sum, one) => sum + one, 0);
  return h("div", h("div.controls",
    choice("Points", [["both", "Both"], ["real", "Real ○"], ["drawn", "Generated ●"]], "both",
      value => { state.show = value; point(null); }), classes), frame,
  h("p.quiet", "Each point is an image: near ones have similar features. Where circles stand alone, the model leaves ",
    `real images out; where dots stand alone, it draws what is not real. The plane holds ${Math.round(100 * share)}% `,
    "of how the real images differ, so that what is apart here is apart, and what is close here may not be."));
}
