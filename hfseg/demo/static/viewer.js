// The viewer: takes the server's message, decodes it, and answers every look at it without asking the server again.

const KEYS = { o: "overlay", m: "mask", i: "image", u: "confidence", b: "wipe", d: "difference" };

class Viewer {
  constructor(root) {
    this.root = root;
    this.layers = [];
    this.size = { width: 0, height: 0 };
    this.look = { view: "overlay", opacity: 0.55, outlines: true, hidden: new Set(), hovered: null, segment: 0, pointed: 0, segmentLayer: null, peek: false };
    this.border = 0.5; // of the wipe, as a share of the image's width on the screen
    this.tool = null;
    this.legend = new Legend(root, this);
    this.objects = new Objects(root, this);
    this.stage = new Stage(root, this);
    this.painter = new Painter(this.stage.canvas);
    this.handle = root.querySelector(".hv-handle");
    this.readout = root.querySelector(".hv-readout");
    this.editor = new Editor(root, this);
    this.listen();
    this.setView("overlay");
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  listen() {
    for (const button of this.root.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => this.setView(button.dataset.view));
    }
    this.find(".hv-views").addEventListener("keydown", (event) => this.moveFocus(event));
    const slider = this.find(".hv-opacity input");
    slider.addEventListener("input", () => this.setOpacity(slider.value / 100));
    this.find("[data-act=outlines]").addEventListener("click", () => this.setOutlines(!this.look.outlines));
    this.find("[data-act=fit]").addEventListener("click", () => this.fit());
    this.stage.box.addEventListener("keydown", (event) => this.key(event));
    this.stage.box.addEventListener("contextmenu", (event) => this.tool && event.preventDefault());
    for (const button of this.root.querySelectorAll("[data-export]")) {
      button.addEventListener("click", () => this.export(button.dataset.export));
    }
    this.handle.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      this.handle.setPointerCapture(event.pointerId);
    });
    this.handle.addEventListener("pointermove", (event) => {
      if (!this.handle.hasPointerCapture(event.pointerId)) return;
      const bounds = this.stage.box.getBoundingClientRect();
      this.setBorder((event.clientX - bounds.left) / bounds.width);
    });
    this.handle.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      this.setBorder(this.border + step);
    });
  }

  // Arrow keys within a group of radio buttons, as everywhere.
  moveFocus(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...event.currentTarget.querySelectorAll("button:not([hidden], :disabled)")];
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  }

  // -- messages -----------------------------------------------------------------------------------------

  begin(given) {
    this.started = performance.now();
    this.given = given?.path;
    const waits = document.querySelector("#status [data-state=loading]");
    if (given) this.busy(waits ? "Loading the model" : "Segmenting");
  }

  busy(text) {
    const box = this.find(".hv-busy");
    box.hidden = !text;
    if (text) box.querySelector("span").textContent = text;
    this.root.setAttribute("aria-busy", String(Boolean(text)));
  }

  failed(image) {
    this.busy(null);
    this.root.dataset.failed = String(1 + Number(this.root.dataset.failed || 0));
    // Gradio forgets what was chosen while a call was under way that failed.
    if (image && image.path !== this.given) document.querySelector("#segment").click();
  }

  // A result comes twice: at once, and again with the confidence, which takes longer than all else.
  async take(message) {
    if (!message || !message.maps) return;
    const arrived = performance.now();
    const turn = this.turn = {};
    try {
      if (message.number === this.message?.number) await this.complete(message);
      else await this.show(message, arrived, turn);
    } catch (error) {
      this.say(error.message);
    }
    if (this.turn === turn) this.busy(null);
  }

  async show(message, arrived, turn) {
    const [blob, ...layers] = await Promise.all([
      fetchBlob(message.source.url),
      ...message.maps.map((map) => Layer.load(map, message.width, message.height)),
    ]);
    const bitmap = await createImageBitmap(blob);
    if (this.turn !== turn) return bitmap.close(); // a newer one came in between
    this.bitmap?.close();
    this.begun(message, bitmap, layers);
    await new Promise((done) => requestAnimationFrame(done));
    this.report(message, arrived, performance.now());
    this.root.dataset.painted = String(message.number);
    if (message.complete) await this.complete(message);
  }

  async complete(message) {
    const layers = this.layers;
    const found = await Promise.all(message.maps.map((map) => map.confidence && decodeNumbers(map.confidence.url, 1)));
    if (layers !== this.layers) return;
    layers.forEach((layer, number) => { layer.confidence = found[number]; });
    this.offerConfidence();
    const took = Object.fromEntries(message.times).confidence;
    if (took >= 0.5 && this.times) {
      this.times.parts.confidence = took;
      this.say(`${this.find(".hv-times").textContent}; confidence ${Math.round(took)} later`);
    }
    this.root.dataset.complete = String(message.number);
    if (this.look.view === "confidence") this.paint();
  }

  // Its view can be chosen as soon as it is there, and for models that have none not at all.
  offerConfidence() {
    const there = this.layers.every((layer) => layer.confidence);
    this.find("[data-view=confidence]").disabled = !there;
    this.find("[data-view=confidence]").hidden = this.layers.some((layer) => layer.hasSegments);
    if (!there && this.look.view === "confidence" && this.message.complete) this.setView("overlay");
  }

  begun(message, bitmap, layers) {
    const kept = this.message && this.layers.some((layer) => layers[0].model === layer.model);
    const samePhoto = this.message?.photo.path === message.photo.path && this.layers.length === layers.length;
    this.message = message;
    this.bitmap = bitmap;
    this.layers = layers;
    this.size = { width: message.width, height: message.height };
    if (!kept) this.look.hidden.clear(); // what was hidden stays so while the model is the same
    Object.assign(this.look, { hovered: null, segment: 0, pointed: 0, segmentLayer: null, peek: false });
    this.chosenLayer = null;
    this.find("[data-view=difference]").hidden = layers.length < 2;
    this.find("[data-view=wipe]").textContent = layers.length > 1 ? "Wipe" : "Before / after";
    if (this.look.view === "difference" && layers.length < 2) this.setView("overlay");
    this.offerConfidence();
    this.root.dataset.state = "shown";
    this.stage.box.style.setProperty("--ratio", `${message.width * (this.sideBySide ? 2 : 1)} / ${message.height}`);
    this.showSegment();
    this.find("[data-export=ids]").hidden = !layers[0].hasSegments;
    this.legend.build();
    this.objects.build();
    samePhoto ? this.paint() : this.fit(); // whoever moves a slider keeps the place
    this.editor.reset();
  }

  // Where the time went, from the click to the painted mask.
  report(message, arrived, painted) {
    const times = Object.fromEntries(message.times);
    const server = message.times.reduce((sum, [, ms]) => sum + ms, 0);
    const parts = [...message.times];
    let total = server;
    if (this.started) {
      total = painted - this.started;
      parts.push(["transfer", Math.max(0, arrived - this.started - server)], ["paint", painted - arrived]);
    }
    const beside = total - (times.forward || 0) - (times["wait for model"] || 0);
    this.times = { parts: Object.fromEntries(parts), total, beside };
    const shown = parts.filter(([, ms]) => ms >= 0.5).map(([name, ms]) => `${name} ${Math.round(ms)}`);
    const size = `${message.width} × ${message.height} pixels`;
    this.say([size, ...message.notes, `${Math.round(total)} ms: ${shown.join(" · ")}`].join(" — "));
    this.started = null;
  }

  say(text) {
    this.find(".hv-times").textContent = text;
  }

  // -- the look -----------------------------------------------------------------------------------------

  get compared() {
    return this.layers.length > 1;
  }

  get sideBySide() {
    return this.compared && !["wipe", "difference"].includes(this.look.view);
  }

  setView(view) {
    const button = this.find(`[data-view=${view}]`);
    if (button.hidden || button.disabled) return;
    const before = this.sideBySide;
    this.look.view = view;
    this.look.peek = false;
    for (const one of this.root.querySelectorAll("[data-view]")) {
      const chosen = one === button;
      one.setAttribute("aria-checked", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
    }
    this.handle.hidden = view !== "wipe" || !this.size.width;
    this.find(".hv-scale").hidden = view !== "confidence";
    this.find(".hv-opacity input").disabled = !["overlay", "wipe"].includes(view);
    if (before !== this.sideBySide) {
      this.stage.box.style.setProperty("--ratio", `${this.size.width * (this.sideBySide ? 2 : 1)} / ${this.size.height}`);
      this.stage.fit();
    }
    this.paint();
  }

  setOpacity(opacity) {
    this.look.opacity = Math.min(1, Math.max(0, opacity));
    const percent = Math.round(100 * this.look.opacity);
    this.find(".hv-opacity input").value = percent;
    this.find(".hv-opacity output").textContent = `${percent} %`;
    this.paint();
  }

  setOutlines(on) {
    this.look.outlines = on;
    this.find("[data-act=outlines]").setAttribute("aria-pressed", String(on));
    this.paint();
  }

  setBorder(share) {
    this.border = Math.min(1, Math.max(0, share));
    this.handle.setAttribute("aria-valuenow", String(Math.round(100 * this.border)));
    this.paint();
  }

  toggle(name, shown) {
    shown ? this.look.hidden.delete(name) : this.look.hidden.add(name);
    this.objects.refresh();
    this.paint();
  }

  hover(name) {
    if (this.look.hovered === name) return;
    this.look.hovered = name;
    this.paint();
  }

  fit() {
    this.stage.fit();
    this.paint();
  }

  key(event) {
    if (event.target !== this.stage.box) return;
    if (this.editor.key(event)) return event.preventDefault();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 60 * this.stage.ratio;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (KEYS[event.key]) this.setView(KEYS[event.key]);
    else if (event.key === "[") this.setOpacity(this.look.opacity - 0.05);
    else if (event.key === "]") this.setOpacity(this.look.opacity + 0.05);
    else if (event.key === " ") { this.look.peek = !this.look.peek; this.paint(); }
    else if (event.key === "f") this.fit();
    else if (event.key === "+" || event.key === "=") { this.stage.zoom(1.25, this.stage.centre()); this.paint(); }
    else if (event.key === "-") { this.stage.zoom(0.8, this.stage.centre()); this.paint(); }
    else if (event.key === "Escape" && this.look.segment) this.choose(0);
    else if (moves[event.key] && !this.stage.fitted) { this.stage.pan(...moves[event.key]); this.paint(); }
    else return;
    event.preventDefault();
  }

  // -- painting -----------------------------------------------------------------------------------------

  paint() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.paintNow();
    });
  }

  paintNow() {
    const { painter, stage, look, layers } = this;
    painter.clear();
    if (!this.bitmap) return;
    const panes = stage.panes();
    const { transform } = stage;
    const whole = panes[0];
    if (look.view === "wipe") {
      const cut = Math.round(this.border * whole.width);
      const left = { ...whole, width: cut };
      const right = { ...whole, x: cut, width: whole.width - cut };
      painter.image(this.bitmap, this.size, whole, transform);
      if (this.compared && !look.peek) painter.classes(layers[0], left, transform, look);
      if (!look.peek) painter.classes(layers[layers.length - 1], right, transform, look);
      this.handle.style.left = `${100 * this.border}%`;
    } else if (look.view === "difference") {
      painter.image(this.bitmap, this.size, whole, transform);
      if (!look.peek) painter.difference(layers[0], layers[1], whole, transform);
    } else {
      panes.forEach((pane, number) => this.paintPane(layers[number], pane, { ...transform, x: transform.x + pane.x }));
    }
    this.tool?.paint?.(painter.context, transform);
    this.label(panes);
  }

  paintPane(layer, pane, transform) {
    const { painter, look } = this;
    if (look.view !== "mask" || look.peek) painter.image(this.bitmap, this.size, pane, transform);
    if (look.peek || look.view === "image") return;
    if (look.view === "confidence" && layer.confidence) painter.confidence(layer, pane, transform);
    else painter.classes(layer, pane, transform, look);
  }

  label(panes) {
    const { view } = this.look;
    const names = !this.compared ? [] : view === "difference" ? [this.difference()] : this.layers.map((layer) => layer.model);
    const box = this.find(".hv-labels");
    box.dataset.panes = String(panes.length);
    box.replaceChildren(...names.map((name) => Object.assign(document.createElement("span"), { textContent: name })));
  }

  difference() {
    const [a, b] = this.layers;
    if (this.agreed?.of !== a) {
      const same = agreement(a, b);
      let count = 0;
      for (let i = 0; i < a.ids.length; i++) count += same(i) ? 1 : 0;
      this.agreed = { of: a, share: count / a.ids.length };
    }
    return `${(100 * this.agreed.share).toFixed(1)} % of the pixels agree`;
  }

  // -- what is under the pointer ------------------------------------------------------------------------

  pointAt(at) {
    this.pointer = at;
    if (this.tool) this.paint();
    const inside = at && at.inside && this.layers.length;
    this.readout.dataset.shown = String(Boolean(inside));
    if (!inside) {
      this.readout.replaceChildren();
      this.objects.mark(this.look.segment);
      return this.legend.mark(null);
    }
    const layer = this.layers[Math.min(at.pane, this.layers.length - 1)];
    const one = layer.classAt(at.index);
    const parts = [];
    const add = (text, className) => parts.push(Object.assign(document.createElement("span"), { textContent: text, className }));
    const swatch = document.createElement("i");
    const segment = layer.segmentAt(at.index);
    swatch.style.background = one ? `rgb(${segment ? layer.colourOf(segment) : one.rgb})` : "transparent";
    parts.push(swatch);
    add(one ? one.name : "no class", "hv-class");
    if (segment) add(`#${segment.id}`, "hv-number");
    if (segment?.score != null) add(`score ${segment.score.toFixed(2)}`, "hv-sure");
    if (layer === this.objects.layer) this.objects.mark(layer.keys[at.index] || this.look.segment);
    if (layer.confidence) add(`${(100 * layer.confidence[at.index] / 255).toFixed(0)} % sure`, "hv-sure");
    add(`${at.column}, ${at.row}`, "hv-at");
    this.readout.replaceChildren(...parts);
    this.legend.mark(one ? one.name : null);
  }

  // A click on a segment selects it, elsewhere nothing is selected.
  select(at) {
    const layer = this.layers[Math.min(at.pane, this.layers.length - 1)];
    if (layer?.hasSegments) this.choose(at.inside ? layer.keys[at.index] : 0, layer);
  }

  choose(key, layer = this.layers[0]) {
    this.look.segment = key === this.look.segment && layer === this.chosenLayer ? 0 : key;
    const other = layer !== this.objects.layer;
    this.chosenLayer = this.look.segmentLayer = layer;
    if (other) this.objects.build();
    this.objects.mark(this.look.segment, true);
    this.showSegment();
    this.paint();
  }

  hoverSegment(key, layer) {
    if (this.look.pointed === key) return;
    this.look.pointed = key;
    this.look.segmentLayer = layer;
    this.paint();
  }

  showSegment() {
    const box = this.find(".hv-segment");
    const segment = this.look.segment && this.chosenLayer.segments[this.look.segment];
    box.hidden = !segment;
    this.root.dataset.segment = segment ? String(segment.id) : "";
    if (!segment) return box.replaceChildren();
    const layer = this.chosenLayer;
    const facts = [
      ["score", segment.score === null ? "–" : segment.score.toFixed(3)],
      ["area", `${segment.area.toLocaleString("en")} px, ${formatShare(segment.area / layer.ids.length)}`],
      ["box", `${segment.bbox[2]} × ${segment.bbox[3]} at ${segment.bbox[0]}, ${segment.bbox[1]}`],
    ];
    const title = document.createElement("strong");
    title.textContent = `${layer.nameOf(segment.label_id)} #${segment.id}`;
    const list = document.createElement("dl");
    for (const [name, value] of facts) {
      list.append(Object.assign(document.createElement("dt"), { textContent: name }),
        Object.assign(document.createElement("dd"), { textContent: value }));
    }
    box.replaceChildren(title, list);
  }

  // -- export -------------------------------------------------------------------------------------------

  async mapFile(layer) {
    const palette = [];
    for (const one of layer.classes.values()) palette[one.id] = one.rgb;
    const deep = layer.none > 255;
    return encodeNumbers(layer.ids, layer.width, layer.height, deep ? "grey16" : "palette", palette);
  }

  async idsFile(layer) {
    const ids = Uint32Array.from(layer.keys, (key) => (key ? layer.segments[key].id : 0));
    const wide = layer.segments.some((segment) => segment?.id > 65535); // as `hfseg predict` writes them
    return encodeNumbers(ids, layer.width, layer.height, wide ? "rgb" : "grey16");
  }

  async export(kind) {
    if (!this.layers.length) return;
    if (kind === "map" || kind === "ids") {
      const url = URL.createObjectURL(await (kind === "map" ? this.mapFile(this.layers[0]) : this.idsFile(this.layers[0])));
      this.save(url, `${this.message.name}_${kind === "map" ? "semantic" : "segment"}_map.png`);
      setTimeout(() => URL.revokeObjectURL(url), 60000);
      return;
    }
    this.exporting = kind;
    this.busy("Exporting");
    trigger("export");
  }

  // What the server is asked for; gradio calls this on "export".
  async exportRequest() {
    const [layer] = this.layers;
    const send = async (blob, name) => {
      const { path } = await upload(new File([blob], name, { type: "image/png" }));
      return { path, orig_name: name, meta: { _type: "gradio.FileData" } };
    };
    const map = await send(await this.mapFile(layer), "map.png");
    let segments = null;
    if (layer.hasSegments) {
      const stored = Uint32Array.from(layer.keys, (key) => (key ? layer.segments[key].id : 0xffffff));
      segments = await send(await encodeNumbers(stored, layer.width, layer.height, "rgb"), "segments.png");
    }
    const classes = [...layer.classes.values()].map(({ id, name, colour }) => ({ id, name, colour }));
    const hidden = classes.filter((one) => this.look.hidden.has(one.name)).map((one) => one.id);
    const infos = layer.segments.filter((one) => one?.area).map(({ id, label_id, score, rle }) => ({ id, label_id, score, rle }));
    const request = { classes, hidden, opacity: this.look.opacity, name: this.message.name, segments: infos };
    const photo = ["cutout", "overlay"].includes(this.exporting) ? this.message.photo : null;
    return [map, this.exporting, photo, request, segments];
  }

  download(file) {
    this.busy(null);
    if (file) this.save(file.url, file.orig_name || file.path.split("/").pop());
  }

  save(url, name) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
  }
}

// Gradio's examples are pictures in buttons without a name.
function nameExamples() {
  document.querySelectorAll("#examples .gallery-item").forEach((button, i) => button.setAttribute("aria-label", `Example ${i + 1}`));
}
const examples = document.querySelector("#examples");
if (examples) {
  new MutationObserver(nameExamples).observe(examples, { childList: true, subtree: true });
  nameExamples();
}

const viewer = new Viewer(element.querySelector(".hv"));
window.hfsegViewer = viewer;
watch("value", () => viewer.take(props.value));
if (props.value) viewer.take(props.value);
