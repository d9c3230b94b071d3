"use strict";

const MODEL = JSON.parse(document.getElementById("model").textContent);
const PIXELS = MODEL.height * MODEL.width * MODEL.channels;

// A part of this file, which is compressed; its text is let go.
async function unpack(name) {
  const element = document.querySelector(`script[data-part="${name}"]`);
  const letters = atob(element.textContent), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  element.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const networks = {};
let ort;

async function load() {
  if (MODEL.endpoint) return;
  const script = URL.createObjectURL(new Blob([await unpack("script")], { type: "text/javascript" }));
  ort = await import(script);
  URL.revokeObjectURL(script);
  ort.env.wasm.numThreads = 1; // more would ask a server for headers
  ort.env.wasm.wasmBinary = await unpack("wasm");
  for (const name of MODEL.networks) {
    networks[name] = await ort.InferenceSession.create(new Uint8Array(await unpack(name)), { executionProviders: ["wasm"] });
  }
}

// A session computes one thing at a time.
let turn = Promise.resolve();
function run(name, input, type, data, shape, labels) {
  const tensors = { [input]: new ort.Tensor(type, data, shape) };
  if (labels) tensors.labels = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]);
  const now = turn.then(() => networks[name].run(tensors));
  turn = now.catch(() => {});
  return now.then(outputs => Object.values(outputs)[0].data);
}

// Of `count` rows, with a label each or none.
function decode(latents, labels) {
  const count = latents.length / MODEL.latent;
  return run("decode", "latents", "float32", latents, [count, MODEL.latent], labels);
}

function encode(images, labels) {
  const count = images.length / PIXELS;
  return run("encode", "images", "uint8", images, [count, MODEL.height, MODEL.width, MODEL.channels], labels);
}

async function latentsOf(seed, first, count, labels, truncation) {
  const noise = seedNoise(seed, first, count, MODEL.noise, truncation);
  return networks.prior ? run("prior", "noise", "float32", noise, [count, MODEL.noise], labels) : noise;
}

// One label for all of them, or each class in turn by their place in the seed; null without classes.
function labelsOf(first, count, label) {
  if (!MODEL.class_names.length) return null;
  return Array.from({ length: count }, (_, i) => label ?? (first + i) % MODEL.class_names.length);
}

// What `atelier sample` draws: latents, labels and uint8 images, one behind the other.
async function drawSeed({ seed, first, count, label = null, truncation = null }) {
  const labels = labelsOf(first, count, label);
  if (MODEL.endpoint) return { latents: null, labels, images: await ask({ seed, first, count, label, truncation }) };
  const latents = await latentsOf(seed, first, count, labels, truncation);
  return { latents, labels, images: await decode(latents, labels) };
}

const SERVER = MODEL.endpoint && (/^https?:/.test(MODEL.endpoint) ? MODEL.endpoint : "The server of this page");

// The same of a server that draws a seed from its first image on.
async function ask({ seed, first, count, label, truncation }) {
  const asked = { n: first + count, seed, ...(label !== null && { label }), ...(truncation !== null && { truncation }) };
  let answer, said = null;
  try {
    answer = await fetch(`${MODEL.endpoint}/invocations`, { method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ dataframe_records: [asked], params: { format: "png" } }) });
  } catch {
    throw new Error(`${SERVER} does not answer this page. Is the model served there? A browser asks a server of `
      + "another address only if that allows it: let one server pass both on, see 'Play with it' in the manual.");
  }
  try {
    said = await answer.json();
  } catch { /* an error page */ }
  if (!answer.ok || !said?.predictions) throw new Error(said?.message ?? `${SERVER} answers ${answer.status}, not with images.`);
  const images = new Uint8Array(count * PIXELS);
  for (const [i, text] of said.predictions.slice(first).entries()) {
    const letters = atob(text);
    if (!letters.includes(MODEL.mark.weights_sha256)) throw new Error(`${SERVER} serves another model.`);
    const file = new Blob([Uint8Array.from(letters, letter => letter.charCodeAt(0))], { type: "image/png" });
    images.set(pixelsOf(await createImageBitmap(file)), i * PIXELS);
  }
  return images;
}

function pixelsOf(picture) {
  const context = new OffscreenCanvas(MODEL.width, MODEL.height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, MODEL.width, MODEL.height);
  return Uint8Array.from({ length: PIXELS }, (_, i) => data[4 * Math.floor(i / MODEL.channels) + i % MODEL.channels]);
}

function row(values, index, size = MODEL.latent) {
  return values.slice(index * size, (index + 1) * size);
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

// A latent between two: on the great circle for a GAN, on the line for a VAE, as the report's pictures.
function between(start, end, t) {
  let a = 1 - t, b = t;
  if (!networks.prior) {
    const cosine = dot(start, end) / Math.sqrt(dot(start, start) * dot(end, end) || 1);
    const angle = Math.acos(Math.min(0.999, Math.max(-0.999, cosine)));
    a = Math.sin((1 - t) * angle) / Math.sin(angle);
    b = Math.sin(t * angle) / Math.sin(angle);
  }
  return start.map((value, i) => a * value + b * end[i]);
}
