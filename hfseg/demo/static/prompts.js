// Clicks and a box for a promptable model: its mask is shown at once, and becomes part of the map when it is added.

const FOUND = pack([255, 255, 255], 0.55);
const FOUND_EDGE = pack([255, 255, 255], 1);

class Prompts {
  constructor(editor, viewer) {
    this.editor = editor;
    this.viewer = viewer;
    const panel = editor.box.querySelector(".hv-prompting");
    this.note = panel.querySelector("output");
    this.sign = panel.querySelector("[data-act=sign]");
    this.sign.addEventListener("click", () => this.setSign(this.sign.getAttribute("aria-pressed") !== "true"));
    this.addButton = panel.querySelector("[data-act=add]");
    this.addButton.addEventListener("click", () => this.add());
    panel.querySelector("[data-act=clear]").addEventListener("click", () => this.clear());
    this.number = 0;
    this.clear();
  }

  isTool(tool) {
    return tool?.prompts === this;
  }

  // Pressed: clicks say what is not part of the object.
  setSign(negative) {
    this.sign.setAttribute("aria-pressed", String(negative));
  }

  tool(name) {
    const prompts = this;
    return {
      name, prompts,
      down: (at, event) => prompts.down(name, at, event),
      move: (at) => prompts.move(at),
      up: (at) => prompts.up(name, at),
      paint: (context, transform) => prompts.paint(context, transform),
    };
  }

  down(name, at, event) {
    if (name === "point") {
      if (!at.inside) return false;
      const negative = event.button === 2 || event.altKey || this.sign.getAttribute("aria-pressed") === "true";
      this.points.push([at.column + 0.5, at.row + 0.5, negative ? 0 : 1]);
      this.ask();
    } else {
      this.corner = this.place(at);
    }
    return true;
  }

  // Within the image, whatever the pointer does.
  place(at) {
    const { width, height } = this.viewer.size;
    const { scale, x, y } = this.viewer.stage.transform;
    return [Math.min(width, Math.max(0, (at.x - x) / scale)), Math.min(height, Math.max(0, (at.y - y) / scale))];
  }

  move(at) {
    if (!this.corner) return;
    const other = this.place(at);
    this.drawn = [Math.min(this.corner[0], other[0]), Math.min(this.corner[1], other[1]),
      Math.max(this.corner[0], other[0]), Math.max(this.corner[1], other[1])];
  }

  up(name, at) {
    if (name !== "box") return;
    this.move(at);
    this.corner = null;
    const [left, top, right, bottom] = this.drawn || [0, 0, 0, 0];
    if (right - left < 2 || bottom - top < 2) this.drawn = this.box;
    else {
      this.box = this.drawn;
      this.points = [];
      this.ask();
    }
    this.viewer.paint();
  }

  ask() {
    this.number++;
    this.note.textContent = "looking…";
    this.viewer.paint();
    trigger("prompt");
  }

  // What the server is asked; gradio calls this on "prompt".
  request() {
    return [this.viewer.message.photo, this.editor.prompted,
      { points: this.points, box: this.box || null, number: this.number }];
  }

  async answer(file, facts) {
    if (!facts || facts.number !== this.number) return; // a later click is on its way
    this.mask = await decodeNumbers(file.url, 1);
    this.note.textContent = `score ${facts.score.toFixed(2)}, ${Math.round(facts.milliseconds)} ms`;
    this.addButton.disabled = false;
    this.viewer.root.dataset.prompted = String(facts.number);
    this.viewer.paint();
  }

  add() {
    if (!this.mask) return;
    const { layer } = this.editor;
    const one = this.editor.chosenClass();
    if (!one) return;
    const done = this.editor.begin();
    if (layer.hasSegments) layer.segments.forEach((segment) => segment && (segment.drawn = false)); // an object of its own
    const key = this.editor.keyFor(one);
    let [left, top, right, bottom] = [layer.width, layer.height, 0, 0];
    for (let i = 0; i < this.mask.length; i++) {
      if (!this.mask[i]) continue;
      layer.ids[i] = one.id;
      if (layer.hasSegments) layer.keys[i] = key;
      const x = i % layer.width, y = (i - x) / layer.width;
      left = Math.min(left, x);
      right = Math.max(right, x + 1);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y + 1);
    }
    this.viewer.look.hidden.delete(one.name);
    this.clear();
    done(left, top, right, bottom);
  }

  clear() {
    this.number++;
    this.points = [];
    this.box = this.drawn = this.corner = this.mask = null;
    this.note.textContent = "";
    this.addButton.disabled = true;
    this.setSign(false);
    this.viewer.paint();
  }

  key(event) {
    if (event.key === "Enter") this.add();
    else if (event.key === "Escape") this.clear();
    else return false;
    return true;
  }

  paint(context, transform) {
    const { viewer, mask } = this;
    if (mask) {
      const pane = viewer.stage.panes()[0];
      viewer.painter.pixels(viewer.layers[0], pane, transform, (at, right, below) => (
        !mask[at] ? 0 : mask[right] && mask[below] ? FOUND : FOUND_EDGE));
    }
    const ratio = viewer.stage.ratio;
    const screen = (x, y) => [transform.x + x * transform.scale, transform.y + y * transform.scale];
    if (this.drawn) {
      const [left, top] = screen(this.drawn[0], this.drawn[1]);
      const [right, bottom] = screen(this.drawn[2], this.drawn[3]);
      context.setLineDash([6 * ratio, 4 * ratio]);
      for (const [width, colour] of [[3, "rgb(0 0 0 / 0.6)"], [1.5, "#fff"]]) {
        context.lineWidth = width * ratio;
        context.strokeStyle = colour;
        context.strokeRect(left, top, right - left, bottom - top);
      }
      context.setLineDash([]);
    }
    for (const [x, y, label] of this.points) {
      context.beginPath();
      context.arc(...screen(x, y), 6 * ratio, 0, 7);
      context.fillStyle = label ? "#10b981" : "#ef4444";
      context.fill();
      context.lineWidth = 2 * ratio;
      context.strokeStyle = "#fff";
      context.stroke();
    }
  }
}
