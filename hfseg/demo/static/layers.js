// What one model says about the image: a class id per pixel, perhaps a segment and a confidence, and their names.

class Layer {
  static async load(map, width, height) {
    const layer = new Layer();
    const deep = map.none > 255;
    const [ids, segments] = await Promise.all([
      decodeNumbers(map.ids.url, deep ? 2 : 1),
      map.segments && decodeNumbers(map.segments.url, 3),
    ]);
    if (ids.length !== width * height) throw new Error("The map does not have the size of the image.");
    Object.assign(layer, { width, height, ids, confidence: null, none: map.none, model: map.model });
    layer.classes = new Map(map.classes.map((one) => [one.id, { ...one, rgb: parseColour(one.colour) }]));
    layer.segments = [null]; // by key; key 0 has no segment
    layer.keys = ids; // what outlines separate and a click selects
    if (segments) layer.takeSegments(segments, map.segments_info);
    layer.count();
    return layer;
  }

  takeSegments(stored, infos) {
    const keyOf = new Map();
    for (const info of infos) {
      keyOf.set(info.id, this.segments.length);
      this.segments.push({ ...info, rgb: parseColour(info.colour) });
    }
    this.keys = new Uint16Array(stored.length);
    for (let i = 0; i < stored.length; i++) this.keys[i] = keyOf.get(stored[i]) || 0;
  }

  get hasSegments() {
    return this.keys !== this.ids;
  }

  // Pixels by class id, counted anew.
  count() {
    const counts = new Uint32Array(this.none > 255 ? 65536 : 256);
    for (let i = 0; i < this.ids.length; i++) counts[this.ids[i]]++;
    this.pixels = counts;
  }

  // Area and box of every segment, counted anew after a correction.
  measure() {
    if (!this.hasSegments) return;
    const found = this.segments.map(() => [0, this.width, this.height, 0, 0]);
    for (let y = 0, i = 0; y < this.height; y++) {
      for (let x = 0; x < this.width; x++, i++) {
        const one = found[this.keys[i]];
        one[0]++;
        if (x < one[1]) one[1] = x;
        if (y < one[2]) one[2] = y;
        if (x >= one[3]) one[3] = x + 1;
        if (y >= one[4]) one[4] = y + 1;
      }
    }
    this.segments.forEach((segment, key) => {
      if (!segment) return;
      if (segment.rle) return; // whole, beside the map
      const [area, left, top, right, bottom] = found[key];
      Object.assign(segment, { area, bbox: area ? [left, top, right - left, bottom - top] : [0, 0, 0, 0] });
    });
  }

  classAt(index) {
    return this.classes.get(this.ids[index]) || null;
  }

  segmentAt(index) {
    return this.hasSegments ? this.segments[this.keys[index]] : null;
  }

  colourOf(segment) {
    return segment.rgb || this.classes.get(segment.label_id)?.rgb || [128, 128, 128];
  }

  nameOf(id) {
    const found = this.classes.get(id);
    return found ? found.name : null;
  }
}

function parseColour(hex) {
  return /^#[0-9a-f]{6}$/i.test(hex) ? [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)) : [128, 128, 128];
}

// Little-endian RGBA in one number, as ImageData's buffer holds it.
function pack([red, green, blue], alpha) {
  return (Math.round(255 * alpha) << 24 | blue << 16 | green << 8 | red) >>> 0;
}
