"use strict";

// A shot is one image: its latent and label, what it is called, and, if a seed has it, how it is drawn again.
const MOST_PINS = 4, REACH = 2.5; // standard deviations of the plane, each way
const CLASSES = MODEL.class_names.length, FEW_CLASSES = CLASSES > 0 && CLASSES <= 12;
const settings = { seed: 0, first: 0, label: null, truncation: null };
const pins = [];
const listeners = { choose: [], pin: [] };
let chosen = null;

function tell(what, ...values) {
  for (const listen of listeners[what]) listen(...values);
}

function className(label) {
  return MODEL.class_names[label] ?? `class ${label}`;
}

async function shotAt(title, latent, label) {
  const [image] = await shotsAt([[title, latent, label]]);
  return image;
}

async function shotsAt(places) {
  const latents = new Float32Array(places.length * MODEL.latent);
  places.forEach(([, latent], i) => latents.set(latent, i * MODEL.latent));
  const images = await decode(latents, CLASSES ? places.map(([, , label]) => label) : null);
  return places.map(([title, latent, label], i) => ({ title, latent, label, image: row(images, i, PIXELS), how: null }));
}

// Calls of a function that is at work wait, and of those that wait the last alone is made.
function latest(work) {
  let isBusy = false, waiting = null;
  return async function call(...values) {
    if (isBusy) {
      waiting = values;
      return;
    }
    isBusy = true;
    try {
      await work(...values);
    } finally {
      isBusy = false;
      const next = waiting;
      waiting = null;
      if (next) call(...next);
    }
  };
}

function sampleCommand({ seed, first, truncation }, count, label, out) {
  return ["atelier sample", MODEL.source, `--seed ${seed}`, first ? `--from ${first}` : "", `--n ${count}`,
    label === null ? "" : `--label ${label}`, truncation === null ? "" : `--truncation ${truncation}`, `--out ${out}`]
    .filter(Boolean).join(" ");
}

function tile(shot) {
  return set(paint(h("canvas.pixels"), shot.image), { role: "img", "aria-label": shot.title });
}

// An image large, with what one can do with it.
function large(label) {
  const canvas = h("canvas.pixels", { role: "img", "aria-label": label });
  const title = h("figcaption", { "aria-live": "polite" }), again = h("div");
  const pin = h("button", { type: "button", click: () => addPin(shot) }, "Pin");
  const keep = h("button", { type: "button", click: () => shot && save(grid(shot.image, 1), `${MODEL.run}.png`, markOf(shot)) }, "Save as PNG");
  let shot = null;
  function show(now) {
    shot = now;
    paint(canvas, shot.image);
    set(canvas, { "aria-label": shot.title });
    title.textContent = shot.title;
    again.replaceChildren(...(shot.how ? [h("h3", "Draw it again"), command(sampleCommand(shot.how, 1, shot.label, "image.png"))] : []));
  }
  return { element: h("figure.large", canvas, title, h("div.actions", !MODEL.endpoint && pin, keep), again), show };
}

function markOf(shot) {
  return shot.how ? { seed: shot.how.seed, index: shot.how.first, label: shot.label } : { label: shot.label };
}

function addPin(shot) {
  pins.push(shot);
  if (pins.length > MOST_PINS) pins.shift();
  tell("pin");
}

function slider(text, { min, max, step, value, label }, move) {
  const said = h("output");
  const input = h("input", { type: "range", min, max, step, value, input: () => say() });
  function say() {
    said.textContent = label(Number(input.value));
    set(input, { "aria-valuetext": said.textContent });
    move(Number(input.value));
  }
  said.textContent = label(value);
  set(input, { "aria-valuetext": said.textContent });
  return { element: h("label.slide", h("span", text), input, said), input };
}

// --- images of a seed

function drawing() {
  const columns = FEW_CLASSES ? CLASSES : 10, count = 3 * columns;
  const field = h("div", h("div.sheet")), all = h("div"), view = large("The chosen image");
  const problem = h("p", { role: "status" });
  let images = null;
  const redraw = latest(async () => {
    const now = { ...settings, count };
    let drawn;
    try {
      drawn = await drawSeed(now);
      problem.textContent = "";
    } catch (error) {
      problem.textContent = error.message;
      return;
    }
    images = drawn.images;
    const before = [...field.firstChild.children], focused = before.indexOf(document.activeElement);
    const place = Math.max(0, before.findIndex(one => one.ariaPressed === "true"));
    const shots = Array.from({ length: count }, (_, i) => {
      const label = drawn.labels && drawn.labels[i], how = { seed: now.seed, first: now.first + i, truncation: now.truncation };
      const title = `Seed ${how.seed}, image ${how.first}${label === null ? "" : `, class ${className(label)}`}`;
      return { title, latent: drawn.latents && row(drawn.latents, i), label, image: row(drawn.images, i, PIXELS), how };
    });
    const buttons = shots.map((shot, i) => h("button.shot", {
      type: "button", tabindex: -1, title: shot.title, "aria-label": shot.title, "aria-pressed": "false", click: () => choose(i) },
    paint(h("canvas.pixels", { "aria-hidden": "true" }), shot.image)));
    const sheet = h("div.sheet", { role: "group", "aria-label": "Images of the seed", style: `--columns:${columns}` }, buttons);
    rove(sheet);
    field.replaceChildren(sheet);
    if (focused >= 0) buttons[focused].focus();
    function choose(i) {
      buttons.forEach((one, at) => one.setAttribute("aria-pressed", String(at === i)));
      chosen = shots[i];
      view.show(chosen);
      tell("choose");
    }
    choose(place);
    all.replaceChildren(command(sampleCommand(now, count, now.label, `${MODEL.run}.png`)));
    if (!pins.length && !MODEL.endpoint) [shots[0], shots[columns]].forEach(addPin); // of the same class, where there are classes
  });
  function number(text, key, most, ...after) {
    const input = h("input", { type: "number", min: 0, max: most, step: 1, value: settings[key], input: () => {
      if (!input.validity.valid || input.value === "") return;
      settings[key] = Number(input.value);
      redraw();
    } });
    return [labelled(text, input), input, after];
  }
  const [seed, seedInput] = number("Seed", "seed", Number.MAX_SAFE_INTEGER);
  const [first] = number("From image", "first", 100000);
  const another = h("button.primary", { type: "button", click: () => {
    seedInput.value = settings.seed = Math.floor(Math.random() * 1e6);
    redraw();
  } }, "Another seed");
  const classes = CLASSES > 0 && (CLASSES <= 30
    ? h("div.control", h("span", "Class"), choice("Class", [[null, "Each in turn"], ...MODEL.class_names.map((name, label) => [label, name])],
      null, label => { settings.label = label; redraw(); }))
    : labelled("Class", select([["", "Each in turn"], ...MODEL.class_names.map((name, label) => [label, name])], "",
      label => { settings.label = label === "" ? null : Number(label); redraw(); })));
  const truncation = MODEL.truncates && slider("Truncation", { min: 0.4, max: 3.1, step: 0.1, value: 3.1,
    label: value => value > 3 ? "off" : value.toFixed(1) }, value => {
    settings.truncation = value > 3 ? null : value;
    redraw();
  });
  redraw();
  return section("Draw",
    h("div.controls", seed, another, first, classes, truncation && h("div.control.wide", truncation.element)), problem,
    h("div.split", h("div", field, h("div.actions", h("button", { type: "button", click: () =>
      images && save(grid(images, columns), `${MODEL.run}.png`, { seed: settings.seed, label: settings.label }) }, "Save all as PNG")),
    all), view.element));
}

// --- what lies between pinned images

function pinned() {
  const slots = h("div.pins"), body = h("div"), view = large("Between the pinned images");
  const as = CLASSES > 0 && select([["", "the nearest pinned image's"], ...MODEL.class_names.map((name, label) => [label, name])], "", show);
  const labelAt = nearest => CLASSES ? (as.value === "" ? nearest.label : Number(as.value)) : null;
  function show() {
    slots.replaceChildren(...Array.from({ length: MOST_PINS }, (_, i) => pins[i]
      ? h("figure.pin", tile(pins[i]), h("button", { type: "button", "aria-label": `Unpin ${i + 1}: ${pins[i].title}`,
        click: () => { pins.splice(i, 1); tell("pin"); } }, "✕"))
      : h("div.pin.empty", String(i + 1))));
    if (pins.length < 2) body.replaceChildren(h("p.quiet", "Pin two images to move between them, or four to move on a square."));
    else if (pins.length < MOST_PINS) line();
    else square();
    view.element.hidden = pins.length < 2;
  }
  function line() {
    const shots = [...pins], last = shots.length - 1;
    const at = t => {
      const part = Math.min(last - 1, Math.floor(t * last)), within = t * last - part;
      return ["Between pinned images", between(shots[part].latent, shots[part + 1].latent, within),
        labelAt(shots[part + Math.round(within)])];
    };
    const move = latest(async t => view.show(await shotAt(...at(t))));
    const one = slider("Way", { min: 0, max: 1, step: 0.01, value: 0.5, label: t => `${Math.round(100 * t)} %` }, move);
    const strip = h("div.strip");
    body.replaceChildren(one.element, strip);
    const steps = Array.from({ length: 11 }, (_, i) => i / 10);
    shotsAt(steps.map(at)).then(found => strip.replaceChildren(...found.map((shot, i) => h("button.shot", { type: "button",
      "aria-label": `${Math.round(100 * steps[i])} % of the way`, click: () => { one.input.value = steps[i]; one.input.dispatchEvent(new Event("input")); } },
    paint(h("canvas.pixels", { "aria-hidden": "true" }), shot.image)))));
    move(0.5);
  }
  function square() {
    const [a, b, c, d] = pins;
    body.replaceChildren(pad("The square between four pinned images", [0.5, 0.5], 7, (x, y) => ["Between four pinned images",
      between(between(a.latent, b.latent, x), between(c.latent, d.latent, x), y), labelAt(y < 0.5 ? (x < 0.5 ? a : b) : (x < 0.5 ? c : d))],
    view.show).element);
  }
  listeners.pin.push(show);
  show();
  return section("Between images", slots, as && h("div.controls", labelled("Drawn as class", as)),
    h("div.split.near", body, view.element));
}

// A square to drag on, with what is drawn all over it; at(x, y) of 0 to 1 says what is drawn there.
function pad(label, start, steps, at, show) {
  const canvas = h("canvas.pixels", { tabindex: 0, role: "img", "aria-label": `${label}: drag, or use the arrow keys` }), mark = h("i.mark");
  const spot = [...start];
  const draw = latest(async () => show(await shotAt(...at(...spot))));
  const sliders = ["Across", "Down"].map((text, axis) => slider(text, { min: 0, max: 1, step: 0.01, value: start[axis],
    label: value => `${Math.round(100 * value)} %` }, value => { spot[axis] = value; place(); }));
  function place() {
    mark.style.left = `${100 * spot[0]}%`;
    mark.style.top = `${100 * spot[1]}%`;
    draw();
  }
  function go(x, y) {
    [x, y].forEach((value, axis) => {
      sliders[axis].input.value = Math.min(1, Math.max(0, value));
      sliders[axis].input.dispatchEvent(new Event("input"));
    });
  }
  function drag(event) {
    if (event.type === "pointerdown") canvas.setPointerCapture(event.pointerId);
    else if (!event.buttons) return;
    const box = canvas.getBoundingClientRect();
    go((event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height);
  }
  canvas.addEventListener("pointerdown", drag);
  canvas.addEventListener("pointermove", drag);
  canvas.addEventListener("keydown", event => {
    const step = { ArrowRight: [0.02, 0], ArrowLeft: [-0.02, 0], ArrowDown: [0, 0.02], ArrowUp: [0, -0.02] }[event.key];
    if (!step) return;
    event.preventDefault();
    go(spot[0] + step[0], spot[1] + step[1]);
  });
  const fill = latest(async () => {
    const middles = Array.from({ length: steps * steps }, (_, i) => at((i % steps + 0.5) / steps, (Math.floor(i / steps) + 0.5) / steps));
    const shots = await shotsAt(middles), one = h("canvas");
    canvas.width = steps * MODEL.width;
    canvas.height = steps * MODEL.height;
    shots.forEach((shot, i) => canvas.getContext("2d").drawImage(paint(one, shot.image), i % steps * MODEL.width, Math.floor(i / steps) * MODEL.height));
  });
  function renew(now) { // after what `at` says has changed
    fill();
    go(...now);
  }
  renew(start);
  return { element: h("div.pad", h("div.field", canvas, mark), sliders.map(one => one.element)), renew };
}

// --- a plane of two latent directions

function plane() {
  const view = large("On the plane"), field = h("div"), { axes, spread, centre } = MODEL.space;
  let board = null, base = null, label = null;
  function at(x, y) {
    const along = [x, 1 - y].map((share, axis) => centre[axis] + (2 * share - 1) * REACH * spread[axis]);
    return ["On the plane", base.map((value, i) => value + along[0] * axes[0][i] + along[1] * axes[1][i]), label];
  }
  function show() {
    const along = axes.map(axis => dot(chosen.latent, axis));
    base = chosen.latent.map((value, i) => value - along[0] * axes[0][i] - along[1] * axes[1][i]);
    label = chosen.label;
    const [x, y] = along.map((value, axis) => 0.5 + (spread[axis] ? (value - centre[axis]) / spread[axis] : 0) / REACH / 2);
    const here = [x, 1 - y].map(value => Math.min(1, Math.max(0, value)));
    if (board) board.renew(here);
    else {
      board = pad("Plane of two latent directions", here, 9, at, view.show);
      field.replaceChildren(board.element);
    }
  }
  listeners.choose.push(show);
  return section("A plane of latents",
    h("p.quiet", "Two directions in which images of this model change most, through the chosen image."),
    h("div.split.near", field, view.element));
}

// --- sums of latents

function arithmetic() {
  const view = large("The sum"), terms = h("div.sum");
  const means = MODEL.space.means.map((mean, label) => ({
    title: CLASSES ? `mean of ${className(label)}` : "mean of all", latent: Float32Array.from(mean), label: CLASSES ? label : null }));
  const values = CLASSES > 1 ? ["pin 0", "mean 0", "mean 1"] : ["pin 0", "pin 1", "mean 0"];
  const find = key => {
    const [kind, number] = key.split(" ");
    return (kind === "pin" ? pins : means)[Number(number)] ?? means[0];
  };
  const show = latest(async () => {
    const options = [...pins.map((shot, i) => [`pin ${i}`, `pinned ${i + 1}`]), ...means.map((mean, i) => [`mean ${i}`, mean.title])];
    const parts = values.map(find);
    const latent = parts[0].latent.map((value, i) => value - parts[1].latent[i] + parts[2].latent[i]);
    const label = CLASSES ? (values[2].startsWith("mean") || parts[0].label === parts[1].label ? parts[2] : parts[0]).label : null;
    const shots = await shotsAt([...parts.map(one => [one.title, one.latent, one.label]), ["The sum", latent, label]]);
    const signs = ["", "−", "+"];
    const focused = [...terms.querySelectorAll("select")].indexOf(document.activeElement);
    terms.replaceChildren(...parts.map((_, i) => h("div.term", signs[i] && h("span.sign", signs[i]), h("figure", tile(shots[i]),
      set(select(options, values[i], value => { values[i] = value; show(); }), { "aria-label": ["First", "Less", "Plus"][i] })))));
    if (focused >= 0) terms.querySelectorAll("select")[focused].focus();
    view.show(shots[3]);
  });
  listeners.pin.push(show);
  show();
  return section("Arithmetic", h("p.quiet", CLASSES ? "An image less the mean of its class, plus the mean of another: the same hand, another class." :
    "What one image has and another lacks, put onto a third."), h("div.split.near", terms, view.element));
}

// --- a picture of one's own, through both halves of a VAE

function reading() {
  const side = 10, view = large("What the model makes of it");
  const board = h("canvas.board", { width: MODEL.width * side, height: MODEL.height * side, tabindex: 0, role: "img",
    "aria-label": "Draw here with a mouse or a finger, or drop a picture" });
  const context = board.getContext("2d", { willReadFrequently: true });
  const small = h("canvas", { width: MODEL.width, height: MODEL.height }), seen = h("canvas.pixels", { role: "img", "aria-label": "As the model sees it" });
  const code = h("div.code", { role: "img" }), words = h("p", { role: "status" });
  const as = CLASSES > 0 && select([["", "whichever fits best"], ...MODEL.class_names.map((name, label) => [label, name])], "", () => read());
  let isDrawn = true;
  function clear() {
    context.fillStyle = "#000";
    context.fillRect(0, 0, board.width, board.height);
  }
  // A drawing fills five sevenths and has its centre of mass in the middle, as the digits of MNIST.
  function shrink() {
    const to = small.getContext("2d", { willReadFrequently: true });
    to.imageSmoothingQuality = "high";
    to.fillStyle = "#000";
    to.fillRect(0, 0, small.width, small.height);
    const { data } = context.getImageData(0, 0, board.width, board.height);
    let [left, top, right, bottom, mass, x, y] = [board.width, board.height, 0, 0, 0, 0, 0];
    if (isDrawn && MODEL.channels === 1) {
      for (let i = 0; i < data.length; i += 4) {
        if (!data[i]) continue;
        const column = i / 4 % board.width, line = Math.floor(i / 4 / board.width);
        left = Math.min(left, column); right = Math.max(right, column + 1);
        top = Math.min(top, line); bottom = Math.max(bottom, line + 1);
        mass += data[i]; x += data[i] * column; y += data[i] * line;
      }
    }
    if (!mass) to.drawImage(board, 0, 0, small.width, small.height);
    else {
      const scale = 5 / 7 * Math.min(small.width / (right - left), small.height / (bottom - top));
      to.drawImage(board, left, top, right - left, bottom - top, small.width / 2 - (x / mass - left) * scale,
        small.height / 2 - (y / mass - top) * scale, (right - left) * scale, (bottom - top) * scale);
    }
    const pixels = to.getImageData(0, 0, small.width, small.height).data, image = new Uint8Array(PIXELS);
    for (let i = 0; i < PIXELS; i++) {
      const at = 4 * Math.floor(i / MODEL.channels);
      image[i] = MODEL.channels === 1 ? Math.round(0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2]) : pixels[at + i % MODEL.channels];
    }
    return image;
  }
  const read = latest(async () => {
    const image = shrink(), labels = CLASSES ? (as.value === "" ? MODEL.class_names.map((_, label) => label) : [Number(as.value)]) : null;
    const many = new Uint8Array(PIXELS * (labels ? labels.length : 1));
    for (let start = 0; start < many.length; start += PIXELS) many.set(image, start);
    const codes = await encode(many, labels), images = await decode(codes, labels);
    const errors = Array.from({ length: many.length / PIXELS }, (_, i) =>
      image.reduce((sum, value, at) => sum + (value - images[i * PIXELS + at]) ** 2, 0));
    const best = errors.indexOf(Math.min(...errors)), label = labels && labels[best], latent = row(codes, best);
    paint(seen, image);
    const most = Math.max(3, ...latent.map(Math.abs));
    code.replaceChildren(...Array.from(latent, value => h("i", { style: `--value:${(value / most).toFixed(3)}` })));
    set(code, { "aria-label": `Code: ${latent.length} numbers from ${Math.min(...latent).toFixed(2)} to ${Math.max(...latent).toFixed(2)}` });
    words.textContent = `${latent.length} numbers${label === null ? "" : `, as class ${className(label)}`}; ` +
      `a grey value is ${Math.sqrt(errors[best] / PIXELS).toFixed(0)} of 255 off.`;
    view.show({ title: "What the model makes of it", latent, label, image: row(images, best, PIXELS), how: null });
  });
  let last = null;
  function stroke(event) {
    if (event.type === "pointerdown") {
      if (!isDrawn) clear();
      isDrawn = true;
      board.setPointerCapture(event.pointerId);
      last = null;
    } else if (!event.buttons) return;
    const box = board.getBoundingClientRect();
    const now = [(event.clientX - box.x) / box.width * board.width, (event.clientY - box.y) / box.height * board.height];
    Object.assign(context, { strokeStyle: "#fff", lineWidth: 0.075 * board.width, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...(last ?? now));
    context.lineTo(...now);
    context.stroke();
    last = now;
    read();
  }
  board.addEventListener("pointerdown", stroke);
  board.addEventListener("pointermove", stroke);
  async function take(file) {
    let picture;
    try {
      picture = await createImageBitmap(file);
    } catch {
      words.textContent = `${file.name}: not a picture that this browser reads.`;
      return;
    }
    isDrawn = false;
    const scale = Math.max(board.width / picture.width, board.height / picture.height);
    clear();
    context.drawImage(picture, (board.width - picture.width * scale) / 2, (board.height - picture.height * scale) / 2,
      picture.width * scale, picture.height * scale);
    read();
  }
  const file = h("input", { type: "file", accept: "image/*", change: () => file.files[0] && take(file.files[0]) });
  board.addEventListener("dragover", event => event.preventDefault());
  board.addEventListener("drop", event => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  clear();
  listeners.choose.push(() => { // before anything is drawn, the chosen image
    if (board.dataset.used) return;
    board.dataset.used = "yes";
    isDrawn = false;
    context.imageSmoothingEnabled = false;
    context.drawImage(paint(h("canvas"), chosen.image), 0, 0, board.width, board.height);
    read();
  });
  return section("A picture of your own",
    h("p.quiet", "Draw, or drop a picture: the model writes it as a code, and draws again from that alone."),
    h("div.controls", h("button", { type: "button", click: () => { clear(); isDrawn = true; read(); } }, "Clear"),
      labelled("Or a file", file), as && labelled("Read as class", as)),
    h("div.split.three", h("figure", board, h("figcaption", "Yours")),
      h("div", h("figure.seen", seen, h("figcaption", "As the model sees it")), h("h3", "Code"), code, words), view.element));
}

async function start() {
  const main = document.getElementById("main"), status = h("p.status", { role: "status" }, "Starting the model …");
  const facts = [MODEL.model, `${MODEL.height} × ${MODEL.width} pixels`, CLASSES ? `${CLASSES} classes` : "no classes", MODEL.latent && `${MODEL.latent} latents`].filter(Boolean);
  main.replaceChildren(h("h1", "Playground: ", MODEL.run), h("p.lead", MODEL.title, h("span.quiet", ` · ${facts.join(" · ")}`)), status);
  try {
    await load();
  } catch (error) {
    status.textContent = `The model cannot start in this browser: ${error.message}`;
    throw error;
  }
  const check = seedNoise(0, 0, 1, MODEL.noise, 1);
  MODEL.truncates = MODEL.endpoint || MODEL.truncated.every((value, i) => Math.abs(value - check[i]) < 1e-4);
  status.remove();
  if (MODEL.endpoint) main.append(h("p.quiet", `This model does not fit into a page. Its images are drawn elsewhere: by ${SERVER[0].toLowerCase()}${SERVER.slice(1)}.`), drawing());
  else main.append(...[drawing(), pinned(), plane(), arithmetic(), networks.encode && reading()].filter(Boolean));
  document.querySelector("footer.foot").append(h("p", MODEL.endpoint ? "Drawn there, by " : "Drawn here, by ", h("code", MODEL.version ?? MODEL.source),
    ` (weights sha256 ${MODEL.mark.weights_sha256.slice(0, 16)}…)${MODEL.endpoint ? "" : "; nothing leaves this page"}. Made by `,
    h("code", "atelier playground"), MODEL.endpoint ? "." : ". ONNX Runtime Web, © Microsoft Corporation, MIT License."));
}

document.querySelector(".skip").addEventListener("click", event => {
  event.preventDefault();
  document.getElementById("main").focus();
});
document.querySelector("header.top").append(h("span.home", "Atelier"));
const started = start();
