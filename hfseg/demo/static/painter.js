// Paints a layer into a rectangle of the canvas, one screen pixel at a time: the cost is that of the screen, not of the
// image, and outlines stay one pixel wide at any zoom.

const SURE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const SURE_TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  const at = i / 255 * (SURE.length - 1);
  const low = Math.min(SURE.length - 2, Math.floor(at));
  return pack(SURE[low].map((value, band) => Math.round(value + (at - low) * (SURE[low + 1][band] - value))), 0.88);
});
const DIFFERENT = pack([236, 24, 120], 0.8);

// Colour by key (class id, or segment) as [fill, edge], for the way the layer is looked at now.
function colourTables(layer, look) {
  const size = layer.hasSegments ? layer.segments.length : layer.none + 1;
  const fill = new Uint32Array(size);
  const edge = new Uint32Array(size);
  const alone = look.segmentLayer === layer ? look.pointed || look.segment : 0;
  const set = (key, id, rgb, bright) => {
    const one = layer.classes.get(id);
    if (!one || look.hidden.has(one.name)) return;
    let alpha = look.view === "mask" ? 1 : look.opacity;
    const aside = (look.hovered && look.hovered !== one.name) || (alone && alone !== key);
    if (aside) alpha *= look.view === "mask" ? 0.25 : 0.15;
    else if (look.hovered || alone) alpha = Math.max(alpha, 0.7);
    fill[key] = pack(rgb, alpha);
    const line = look.view === "mask" ? rgb.map((v) => Math.round(v * 0.6)) : bright ? rgb.map((v) => Math.min(255, 110 + v * 0.6)) : rgb;
    edge[key] = pack(line, aside ? 2 * alpha : bright && look.view !== "mask" ? 0.9 : (1 + alpha) / 2);
  };
  if (layer.hasSegments) {
    layer.segments.forEach((segment, key) => segment && set(key, segment.label_id, layer.colourOf(segment), true));
  } else {
    for (const [id, one] of layer.classes) set(id, id, one.rgb, false);
  }
  return [fill, edge];
}

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.overlay = document.createElement("canvas");
  }

  // Image coordinates of the screen's columns or rows; -1 outside.
  static axis(start, count, origin, scale, size) {
    const at = new Int32Array(count + 1);
    for (let i = 0; i <= count; i++) {
      const value = Math.floor((start + i + 0.5 - origin) / scale);
      at[i] = value >= 0 && value < size ? value : -1;
    }
    return at;
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  // rectangle: {x, y, width, height} on the canvas; transform: {scale, x, y}, where the image's corner lies.
  image(bitmap, size, rectangle, transform) {
    const { context } = this;
    context.save();
    this.clip(rectangle);
    context.imageSmoothingEnabled = transform.scale < 4;
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, transform.x, transform.y, size.width * transform.scale, size.height * transform.scale);
    context.restore();
  }

  clip({ x, y, width, height }) {
    this.context.beginPath();
    this.context.rect(x, y, width, height);
    this.context.clip();
  }

  // colour(index of the pixel, of the one to its right, below, to its left, above) -> RGBA as `pack` gives it.
  pixels(layer, rectangle, transform, colour) {
    const { x, y, width, height } = rectangle;
    if (width < 1 || height < 1) return;
    const columns = Painter.axis(x, width, transform.x, transform.scale, layer.width);
    const rows = Painter.axis(y, height, transform.y, transform.scale, layer.height);
    const data = new ImageData(width, height);
    const out = new Uint32Array(data.data.buffer);
    for (let j = 0, to = 0; j < height; j++) {
      if (rows[j] < 0) { to += width; continue; }
      const start = rows[j] * layer.width;
      const next = rows[j + 1] < 0 ? start : rows[j + 1] * layer.width;
      const before = j === 0 || rows[j - 1] < 0 ? start : rows[j - 1] * layer.width;
      for (let i = 0; i < width; i++, to++) {
        const column = columns[i];
        if (column < 0) continue;
        const right = columns[i + 1] < 0 ? column : columns[i + 1];
        const left = i === 0 || columns[i - 1] < 0 ? column : columns[i - 1];
        out[to] = colour(start + column, start + right, next + column, start + left, before + column);
      }
    }
    this.overlay.width = width;
    this.overlay.height = height;
    this.overlay.getContext("2d").putImageData(data, 0, 0);
    this.context.drawImage(this.overlay, x, y);
  }

  classes(layer, rectangle, transform, look) {
    const [fill, edge] = colourTables(layer, look);
    const { keys } = layer;
    if (!look.outlines) return this.pixels(layer, rectangle, transform, (at) => fill[keys[at]] || 0);
    const line = (key, right, below) => (key !== keys[right] || key !== keys[below] ? edge[key] : fill[key]) || 0;
    if (!layer.hasSegments) return this.pixels(layer, rectangle, transform, (at, right, below) => line(keys[at], right, below));
    // Around objects a line within each, on all sides.
    this.pixels(layer, rectangle, transform, (at, right, below, left, above) => {
      const key = keys[at];
      return !key ? 0 : key !== keys[left] || key !== keys[above] ? edge[key] : line(key, right, below);
    });
  }

  confidence(layer, rectangle, transform) {
    this.pixels(layer, rectangle, transform, (at) => SURE_TABLE[layer.confidence[at]]);
  }

  difference(a, b, rectangle, transform) {
    const same = agreement(a, b);
    this.pixels(a, rectangle, transform, (at) => (same(at) ? 0 : DIFFERENT));
  }
}

// A function of a pixel's index: whether both layers give it a class of the same name.
function agreement(a, b) {
  const number = new Map();
  const table = (layer) => {
    const found = new Int32Array(65536).fill(-1);
    for (const [id, one] of layer.classes) {
      if (!number.has(one.name)) number.set(one.name, number.size);
      found[id] = number.get(one.name);
    }
    return found;
  };
  const [left, right] = [table(a), table(b)];
  return (at) => left[a.ids[at]] === right[b.ids[at]];
}
