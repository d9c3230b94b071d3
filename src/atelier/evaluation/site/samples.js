"use strict";

// One image of a sheet, as the background of an element that is as large as its place.
function showTile(element, run, sheet, position, count) {
  const columns = run.gallery.columns, rows = Math.ceil(count / columns);
  const x = columns > 1 ? (position % columns) / (columns - 1) * 100 : 0;
  const y = rows > 1 ? Math.floor(position / columns) / (rows - 1) * 100 : 0;
  element.style.backgroundImage = `url("${picture(run, sheet)}")`;
  element.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
  element.style.backgroundPosition = `${x}% ${y}%`;
  element.style.aspectRatio = `${run.width} / ${run.height}`;
  element.classList.add("tile");
  return element;
}

function realTile(run, position) {
  return showTile(h("span"), run, "real", position, run.gallery.real.length);
}

function drawnTile(run, position, element = h("span")) {
  return showTile(element, run, "drawn", position, run.gallery.drawn.length);
}

function nearestTile(run, position, neighbour) {
  const each = run.gallery.drawn[0].nearest.length;
  return showTile(h("span"), run, "nearest", position * each + neighbour, run.gallery.drawn.length * each);
}

// Positions in the gallery of what is of a class, or of all; the classes in turn where there are several.
function positions(list, key, label) {
  return list.map((_, index) => index).filter(index => label === null || list[index][key] === label);
}

function tiles(what, run, found, draw) {
  return h("span.tiles", { role: "img", "aria-label": `${found.length} ${what}` }, found.map(index => draw(run, index)));
}

function realTiles(run, label, count) {
  return tiles("real images", run, positions(run.gallery.real, "label", label).slice(0, count), realTile);
}

function drawnTiles(run, label, count) {
  return tiles(`samples of ${run.name}`, run, positions(run.gallery.drawn, "asked", label).slice(0, count), drawnTile);
}

// A real image for the place of each sample, of the class that it was asked for.
function realBeside(run, drawn) {
  const left = new Map();
  return drawn.map(index => {
    const asked = run.gallery.drawn[index].asked;
    const known = run.gallery.real.some(one => one.label === asked) ? asked : null;
    if (!left.has(known)) left.set(known, positions(run.gallery.real, "label", known));
    const row = left.get(known);
    row.push(row.shift());
    return row[row.length - 1];
  });
}

function sampleName(run, index) {
  const one = run.gallery.drawn[index];
  const asked = one.asked === null ? "" : `, asked for ${className(run, one.asked)}`;
  const seen = one.recognised === null || one.recognised === one.asked || one.asked === null
    ? "" : `, seen as ${className(run, one.recognised)}`;
  return `Sample ${one.index}${asked}${seen}${run.copies.includes(one.index) ? ", copy of a training image" : ""}`;
}

function sampleButton(run, index, all) {
  const one = run.gallery.drawn[index];
  const button = h("button", {
    type: "button", tabindex: -1, title: sampleName(run, index), "aria-label": sampleName(run, index),
    click: () => openSample(run, index, all()),
  });
  if (run.copies.includes(one.index)) button.classList.add("copied");
  else if (one.asked !== null && one.recognised !== null && one.recognised !== one.asked) button.classList.add("wrong");
  return drawnTile(run, index, button);
}

// Samples beside real images of the same classes; a click opens one.
function gallery(runs, most) {
  const [first] = runs;
  const state = { label: null, order: "drawn", count: most };
  const panels = h("div.panels");
  const more = h("button.more", { type: "button", click: () => { state.count += most; show(); } }, "Show more");
  function chosen(run) {
    const found = positions(run.gallery.drawn, "asked", state.label);
    const { drawn } = run.gallery;
    if (state.order === "nearest") found.sort((a, b) => drawn[a].distances[0] - drawn[b].distances[0]);
    else if (state.label === null && run.class_names.length) byClass(found, index => drawn[index].asked);
    return found;
  }
  function show() {
    const lists = runs.map(chosen);
    const real = realBeside(first, lists[0].slice(0, state.count));
    panels.replaceChildren(
      h("figure.panel", h("figcaption", "Real test images"), h("div.sheet",
        { role: "img", "aria-label": `${real.length} real test images` }, real.map(index => realTile(first, index)))),
      ...runs.map((run, number) => {
        const all = lists[number], shown = all.slice(0, state.count);
        const sheet = h("div.sheet", { role: "group", "aria-label": `Samples of ${run.name}` },
          shown.map(index => sampleButton(run, index, () => all)));
        rove(sheet);
        return h("figure.panel", h("figcaption", h("i.dot", { style: `background:${colour(run)}` }),
          runs.length > 1 ? run.name : "Generated", run.copies.length > 0 &&
            h("span.badge.alarm", `${run.copies.length} ${run.copies.length > 1 ? "copies" : "copy"}`)), sheet);
      }));
    more.hidden = lists.every(list => list.length <= state.count);
  }
  const classes = first.class_names.length > 0 && first.class_names.length <= 30 && choice("Class",
    [[null, "All classes"], ...first.class_names.map((name, label) => [label, name])], null,
    label => { state.label = label; state.count = most; show(); });
  const compared = runs.every(run => run.gallery.drawn[0].distances.length);
  const order = compared && choice("Order", [["drawn", "As drawn"], ["nearest", "Nearest to a training image first"]],
    "drawn", value => { state.order = value; show(); });
  show();
  return h("div.gallery", h("div.controls", classes, order), panels, more);
}

// As a row of each class would show them, column by column: the first of each class, then the second.
function byClass(found, label) {
  const seen = new Map(), turn = new Map();
  for (const index of found) {
    const count = seen.get(label(index)) || 0;
    seen.set(label(index), count + 1);
    turn.set(index, count);
  }
  found.sort((a, b) => turn.get(a) - turn.get(b) || label(a) - label(b) || a - b);
}

// One sample large: what is known of it, the training images nearest to it, the commands that draw it again.
function openSample(run, index, all) {
  const dialog = h("dialog.sample", { "aria-labelledby": "sample-title", close: () => dialog.remove() });
  const opener = document.activeElement;
  function show(now) {
    index = now;
    const one = run.gallery.drawn[index], { seed, nearest_of_test: usual } = run.gallery;
    const isCopy = run.copies.includes(one.index), here = all.indexOf(index);
    const label = one.asked === null ? "" : ` --label ${one.asked}`;
    const step = by => ({ type: "button", disabled: !(here + by in all), click: () => show(all[here + by]) });
    const facts = [["Run", run.name], ["Seed", `${seed}, image ${one.index}`]];
    if (one.asked !== null) facts.push(["Asked for", className(run, one.asked)]);
    if (one.recognised !== null) facts.push(["The classifier sees", className(run, one.recognised)]);
    dialog.replaceChildren(
      h("header", h("h2", { id: "sample-title" }, `Sample ${one.index}`), isCopy &&
        h("span.badge.alarm", "copy of a training image"),
        h("button.close", { type: "button", "aria-label": "Close", click: () => dialog.close() }, "✕")),
      h("div.sample-body",
        h("figure.large", drawnTile(run, index, h("span", { role: "img", "aria-label": sampleName(run, index) })),
          h("figcaption", "The sample")),
        one.nearest.length > 0 && h("figure.near",
          h("div.row", one.nearest.map((number, place) => h("figure",
            set(nearestTile(run, index, place), { role: "img", "aria-label": `Training image ${number}` }),
            h("figcaption", `№ ${number}`, h("br"), usual ? `${(one.distances[place] / usual).toFixed(2)} ×` : "")))),
          h("figcaption", "The training images nearest to it, by pixels.", usual &&
            ` 1 × is how far a real test image is from its nearest one${isCopy ? ": this is as good as the same image" : ""}.`))),
      h("dl", facts.map(([name, value]) => [h("dt", name), h("dd", value)])),
      h("h3", "Draw this image again"),
      command(`atelier sample models/${run.name} --seed ${seed} --from ${one.index} --n 1${label} --out image-${one.index}.png`),
      h("h3", one.asked === null ? "Draw more" : "Draw more like this"),
      command(`atelier sample models/${run.name} --seed ${seed + 1} --n 100${label} --out more.png`),
      h("footer", h("button", step(-1), "← Previous"), h("button", step(1), "Next →")));
  }
  dialog.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], next = all[all.indexOf(index) + by];
    if (by && next !== undefined) show(next);
  });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => opener && opener.focus());
  show(index);
  document.body.append(dialog);
  dialog.showModal();
}

// Pictures drawn from the same latents during training, of all runs at the same share of it, under one slider.
function trainingSlider(runs) {
  const most = Math.max(...runs.map(run => run.steps.length));
  const images = runs.map(run => h("img.pixels", { alt: "" }));
  const texts = runs.map(() => h("span"));
  const slider = h("input", { type: "range", min: 0, max: most - 1, value: most - 1, step: 1, input: () => show() });
  const play = h("button", { type: "button", "aria-pressed": "false", click: toggle }, "▶ Play");
  let timer = null;
  function show() {
    const share = slider.value / Math.max(1, most - 1);
    runs.forEach((run, number) => {
      const step = Math.round(share * (run.steps.length - 1)), kimg = run.steps[step];
      images[number].src = picture(run, `step ${Math.round(kimg * 1000)}`);
      images[number].alt = `Samples of ${run.name} after ${figure(kimg)} kimg`;
      texts[number].textContent = `${figure(kimg)} kimg` +
        (local(run).seconds ? `, ${duration(secondsAt(run, kimg))}` : "");
    });
    slider.setAttribute("aria-valuetext", texts.map(text => text.textContent).join("; "));
  }
  function toggle() {
    if (timer) stop();
    else {
      if (Number(slider.value) === most - 1) slider.value = 0;
      timer = setInterval(() => {
        if (!slider.isConnected || Number(slider.value) === most - 1) return stop();
        slider.value = Number(slider.value) + 1;
        return show();
      }, 400);
      play.setAttribute("aria-pressed", "true");
      play.textContent = "❚❚ Pause";
    }
    show();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "▶ Play";
  }
  const [first] = runs;
  const real = h("figure.panel", h("figcaption", "Real test images"), h("div.sheet.framed",
    { style: `grid-template-columns:repeat(${first.columns}, 1fr)`, role: "img", "aria-label": "Real test images" },
    realRows(first)));
  const figures = runs.map((run, number) => h("figure.panel",
    h("figcaption", h("i.dot", { style: `background:${colour(run)}` }), runs.length > 1 && `${run.name}: `, texts[number]),
    images[number]));
  show();
  return h("div.training", h("div.controls", play, h("label.slide", h("span", "Step of training"), slider)),
    h("div.panels", real, figures));
}

// Real images in the places of a picture of training: a column for each class.
function realRows(run) {
  const lists = run.class_names.map((_, label) => positions(run.gallery.real, "label", label));
  const any = positions(run.gallery.real, "label", null);
  return Array.from({ length: run.rows * run.columns }, (_, place) => {
    const list = lists.length ? lists[place % run.columns] : any;
    const at = lists.length ? Math.floor(place / run.columns) : place;
    return list && list.length ? realTile(run, list[at % list.length]) : h("span");
  });
}
