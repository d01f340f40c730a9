// Between PNG files and arrays of ids. Ids are exact: nothing on the way is resampled, blended or colour-managed.

// Calls back with the pixels of an image, some rows at a time: canvases of the whole image may be larger than allowed.
async function readPixels(blob, use) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const rows = Math.max(1, Math.min(height, Math.floor(4e6 / width)));
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = rows;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    use(context.getImageData(0, 0, width, count).data, top * width, width * height);
  }
  bitmap.close();
}

// Numbers that a PNG holds: `bytes` 1 takes red, 2 red + 256 green, 3 red + 256 green + 65536 blue.
async function decodeNumbers(url, bytes) {
  const blob = await fetchBlob(url);
  let numbers = null;
  await readPixels(blob, (data, start, total) => {
    numbers ||= bytes === 1 ? new Uint8Array(total) : bytes === 2 ? new Uint16Array(total) : new Uint32Array(total);
    const pixels = new Uint32Array(data.buffer); // little-endian RGBA
    const mask = [0, 0xff, 0xffff, 0xffffff][bytes];
    for (let from = 0, to = start; from < pixels.length; from++, to++) numbers[to] = pixels[from] & mask;
  });
  return numbers;
}

async function fetchBlob(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error("The result is no longer on the server. Segment the image again.");
  return response.blob();
}

// A PNG file. kind: "palette" (8 bits, with colours as [[r, g, b], ...]), "grey16", or "rgb" (24 bits of a number).
async function encodeNumbers(numbers, width, height, kind, palette = []) {
  const size = { palette: 1, grey16: 2, rgb: 3 }[kind];
  const raw = new Uint8Array(height * (1 + size * width));
  for (let y = 0, to = 0, from = 0; y < height; y++) {
    raw[to++] = 0; // no filter
    for (let x = 0; x < width; x++, from++) {
      const n = numbers[from];
      if (size === 1) raw[to++] = n;
      else if (size === 2) { raw[to++] = n >> 8; raw[to++] = n & 255; }
      else { raw[to++] = n & 255; raw[to++] = n >> 8 & 255; raw[to++] = n >> 16 & 255; }
    }
  }
  const stream = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set([size === 2 ? 16 : 8, { palette: 3, grey16: 0, rgb: 2 }[kind]], 8);
  const parts = [new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), pngChunk("IHDR", header)];
  if (kind === "palette") parts.push(pngChunk("PLTE", Uint8Array.from({ length: 768 }, (_, i) => (palette[i / 3 | 0] || [0, 0, 0])[i % 3])));
  parts.push(pngChunk("IDAT", packed), pngChunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}

function pngChunk(name, data) {
  const chunk = new Uint8Array(12 + data.length);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) chunk[4 + i] = name.charCodeAt(i);
  chunk.set(data, 8);
  view.setUint32(8 + data.length, crc32(chunk.subarray(4, 8 + data.length)));
  return chunk;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ crc >>> 8;
  return (crc ^ -1) >>> 0;
}
