"use strict";

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

// One image (h, w, c) on a canvas.
function paint(canvas, image, width = MODEL.width, height = MODEL.height) {
  canvas.width = width;
  canvas.height = height;
  const channels = image.length / (width * height), pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = image[i * channels + Math.min(c, channels - 1)];
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// Images in rows of `columns` with the gaps that `atelier sample` leaves.
function grid(images, columns, gap = 2) {
  const count = images.length / PIXELS, rows = Math.ceil(count / columns);
  const sheet = h("canvas", { width: columns * (MODEL.width + gap) + gap, height: rows * (MODEL.height + gap) + gap });
  const context = sheet.getContext("2d"), one = h("canvas");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, sheet.width, sheet.height);
  for (let i = 0; i < count; i++) {
    const left = gap + i % columns * (MODEL.width + gap), top = gap + Math.floor(i / columns) * (MODEL.height + gap);
    context.drawImage(paint(one, row(images, i, PIXELS)), left, top);
  }
  return sheet;
}

// A canvas as PNG that says which model drew it, as pictures of `atelier sample` do; behind the header, in XMP.
async function markedPng(canvas, how) {
  const png = new Uint8Array(await (await new Promise(done => canvas.toBlob(done, "image/png"))).arrayBuffer());
  const said = Object.entries({ ...MODEL.mark, ...how }).filter(([, value]) => value !== null && value !== undefined);
  const json = JSON.stringify(Object.fromEntries(said));
  const escaped = json.replace(/[&<>"']/g, letter => `&#${letter.charCodeAt(0)};`);
  const text = new TextEncoder().encode(`XML:com.adobe.xmp\0\0\0\0\0${MODEL.xmp.join(escaped)}`);
  const chunk = new Uint8Array(text.length + 12), view = new DataView(chunk.buffer);
  view.setUint32(0, text.length);
  chunk.set(new TextEncoder().encode("iTXt"), 4);
  chunk.set(text, 8);
  let crc = 0xffffffff;
  for (const byte of chunk.subarray(4, text.length + 8)) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  view.setUint32(text.length + 8, ~crc >>> 0);
  const header = 33; // of the file, and its chunk IHDR
  return new Blob([png.subarray(0, header), chunk, png.subarray(header)], { type: "image/png" });
}

async function save(canvas, name, how) {
  const link = h("a", { href: URL.createObjectURL(await markedPng(canvas, how)), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
