// Correcting a map by hand: a brush, an eraser, and masks that a promptable model finds; with undo and redo.

class Editor {
  constructor(root, viewer) {
    this.viewer = viewer;
    this.root = root;
    this.box = root.querySelector(".hv-tools");
    this.classes = this.box.querySelector(".hv-class-choice");
    this.fresh = this.box.querySelector(".hv-new-class");
    this.size = this.box.querySelector(".hv-brush-size input");
    this.past = [];
    this.future = [];
    const move = { name: "move", cursor: "" };
    this.tools = { move, brush: new Brush(this, false), eraser: new Brush(this, true) };
    this.prompts = new Prompts(this, viewer);
    this.tools.point = this.prompts.tool("point");
    this.tools.box = this.prompts.tool("box");
    for (const button of this.box.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.use(button.dataset.tool));
    }
    this.box.querySelector("[data-group=tools]").addEventListener("keydown", (event) => viewer.moveFocus(event));
    this.classes.addEventListener("change", () => this.showOptions());
    this.fresh.addEventListener("keydown", (event) => event.key === "Enter" && this.chosenClass());
    this.box.querySelector("[data-act=undo]").addEventListener("click", () => this.step(this.past, this.future));
    this.box.querySelector("[data-act=redo]").addEventListener("click", () => this.step(this.future, this.past));
    this.use("move");
  }

  get layer() {
    return this.viewer.layers[0];
  }

  // A new result: nothing to undo, and its own classes.
  reset() {
    this.past = [];
    this.future = [];
    this.prompts.clear();
    this.box.hidden = this.viewer.layers.length !== 1;
    this.prompted = this.viewer.message.prompter;
    for (const name of ["point", "box"]) this.box.querySelector(`[data-tool=${name}]`).hidden = !this.prompted;
    if (this.box.hidden || (!this.prompted && this.prompts.isTool(this.viewer.tool))) this.use("move");
    this.listClasses();
    this.refresh();
  }

  listClasses(chosen = this.classes.value) {
    const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
    const known = [...this.layer.classes.values()].map((one) => option(String(one.id), one.name));
    this.classes.replaceChildren(...known, option("new", "new class…"));
    if ([...this.classes.options].some((one) => one.value === chosen)) this.classes.value = chosen;
    this.showOptions();
  }

  use(name) {
    const tool = this.tools[name];
    this.viewer.tool = name === "move" ? null : tool;
    for (const button of this.box.querySelectorAll("[data-tool]")) {
      const on = button.dataset.tool === name;
      button.setAttribute("aria-checked", String(on));
      button.tabIndex = on ? 0 : -1;
    }
    const stage = this.viewer.stage.box;
    if (name === "move") delete stage.dataset.tool;
    else stage.dataset.tool = name;
    this.showOptions();
    this.viewer.paint();
  }

  showOptions() {
    const name = this.viewer.tool?.name || "move";
    const prompting = name === "point" || name === "box";
    this.classes.parentElement.hidden = name === "move" || name === "eraser";
    this.fresh.hidden = this.classes.parentElement.hidden || this.classes.value !== "new";
    this.size.parentElement.hidden = name !== "brush" && name !== "eraser";
    this.box.querySelector(".hv-prompting").hidden = !prompting;
  }

  refresh() {
    this.box.querySelector("[data-act=undo]").disabled = !this.past.length;
    this.box.querySelector("[data-act=redo]").disabled = !this.future.length;
    this.root.dataset.edited = String(this.past.length > 0);
  }

  // The class to paint with; a new one is made where its name is not known yet. Null without a name.
  chosenClass() {
    const { layer } = this;
    if (this.classes.value !== "new") return layer.classes.get(Number(this.classes.value));
    const name = this.fresh.value.trim().slice(0, 200);
    if (!name) {
      this.fresh.focus();
      this.viewer.say("Name the new class first.");
      return null;
    }
    let one = [...layer.classes.values()].find((known) => known.name === name);
    if (!one) {
      let id = 0;
      while (layer.classes.has(id)) id++;
      if (id >= layer.none) {
        this.viewer.say("There is no room for another class.");
        return null;
      }
      const rgb = freshColour(id);
      one = { id, name, rgb, colour: `#${rgb.map((value) => value.toString(16).padStart(2, "0")).join("")}` };
      layer.classes.set(id, one);
    }
    this.fresh.value = "";
    this.listClasses(String(one.id));
    return one;
  }

  // The key that painting with a class gives: the class id, or where there are objects one more object.
  keyFor(one) {
    const { layer } = this;
    if (!layer.hasSegments) return one ? one.id : layer.none;
    if (!one) return 0;
    const known = layer.segments.findIndex((segment) => segment?.drawn && segment.label_id === one.id);
    if (known > 0) return known;
    const id = 1 + layer.segments.reduce((most, segment) => Math.max(most, segment ? segment.id : 0), 0);
    layer.segments.push({ id, label_id: one.id, score: null, area: 0, bbox: [0, 0, 0, 0], drawn: true });
    return layer.segments.length - 1;
  }

  // Remembers the map before a change; call what is returned with the changed rectangle when it is over.
  begin() {
    const { layer } = this;
    const ids = layer.ids.slice();
    const keys = layer.hasSegments ? layer.keys.slice() : null;
    return (left, top, right, bottom) => {
      [left, top] = [Math.max(0, left), Math.max(0, top)];
      [right, bottom] = [Math.min(layer.width, right), Math.min(layer.height, bottom)];
      if (right <= left || bottom <= top) return;
      const patch = { left, top, right, bottom, ids: cut(ids), keys: keys && cut(keys) };
      if (keys) this.forgetMasks(patch);
      function cut(array) {
        const out = new array.constructor((right - left) * (bottom - top));
        for (let y = top, to = 0; y < bottom; y++, to += right - left) {
          out.set(array.subarray(y * layer.width + left, y * layer.width + right), to);
        }
        return out;
      }
      this.past.push(patch);
      if (this.past.length > 60) this.past.shift();
      this.future = [];
      this.changed();
    };
  }

  // Objects that were corrected are what the map shows of them.
  forgetMasks({ left, top, right, bottom, keys }) {
    const { layer } = this;
    for (let y = top, at = 0; y < bottom; y++) {
      for (let x = left; x < right; x++, at++) {
        const now = layer.keys[y * layer.width + x];
        if (now !== keys[at]) for (const key of [now, keys[at]]) if (key) delete layer.segments[key].rle;
      }
    }
  }

  // Puts the last patch of one list back, and what it replaces on the other.
  step(from, to) {
    const patch = from.pop();
    if (!patch) return;
    const { layer } = this;
    const swap = (array, saved) => {
      const width = patch.right - patch.left;
      for (let y = patch.top, at = 0; y < patch.bottom; y++, at += width) {
        const row = array.subarray(y * layer.width + patch.left, y * layer.width + patch.right);
        const now = row.slice();
        row.set(saved.subarray(at, at + width));
        saved.set(now, at);
      }
    };
    swap(layer.ids, patch.ids);
    if (patch.keys) swap(layer.keys, patch.keys);
    to.push(patch);
    this.changed();
  }

  changed() {
    this.layer.count();
    this.layer.measure();
    this.viewer.legend.build();
    this.viewer.objects.build();
    this.viewer.showSegment();
    this.refresh();
    this.viewer.paint();
  }

  key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.shiftKey ? this.step(this.future, this.past) : this.step(this.past, this.future);
      return true;
    }
    return this.prompts.isTool(this.viewer.tool) && this.prompts.key(event);
  }
}

// Colours far from each other, whatever their number.
function freshColour(number) {
  const hue = (number * 137.5 + 20) % 360;
  const band = (shift) => {
    const k = (shift + hue / 30) % 12;
    return Math.round(255 * (0.56 - 0.34 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [band(0), band(8), band(4)];
}

class Brush {
  constructor(editor, erases) {
    this.editor = editor;
    this.erases = erases;
    this.name = erases ? "eraser" : "brush";
  }

  get radius() {
    return this.editor.size.value / 2;
  }

  down(at, event) {
    if (event.button) return false;
    const one = this.erases ? null : this.editor.chosenClass();
    if (!this.erases && !one) return false;
    this.done = this.editor.begin();
    this.id = one ? one.id : this.editor.layer.none;
    this.key = this.editor.keyFor(one);
    if (one) this.editor.viewer.look.hidden.delete(one.name);
    this.bounds = [Infinity, Infinity, -Infinity, -Infinity];
    this.last = null;
    this.move(at);
    return true;
  }

  move(at) {
    const from = this.last || at;
    const steps = Math.ceil(Math.hypot(at.column - from.column, at.row - from.row) / Math.max(1, this.radius / 2));
    for (let step = 0; step <= steps; step++) {
      const share = steps ? step / steps : 1;
      this.stamp(from.column + share * (at.column - from.column), from.row + share * (at.row - from.row));
    }
    this.last = at;
  }

  stamp(x, y) {
    const { layer } = this.editor;
    const r = this.radius;
    const [top, bottom] = [Math.ceil(y - r), Math.floor(y + r)];
    for (let row = Math.max(0, top); row <= Math.min(layer.height - 1, bottom); row++) {
      const half = Math.sqrt(Math.max(0, r * r - (row - y) ** 2));
      const left = Math.max(0, Math.ceil(x - half));
      const right = Math.min(layer.width, Math.floor(x + half) + 1);
      if (right <= left) continue;
      layer.ids.fill(this.id, row * layer.width + left, row * layer.width + right);
      if (layer.hasSegments) layer.keys.fill(this.key, row * layer.width + left, row * layer.width + right);
      this.bounds = [Math.min(this.bounds[0], left), Math.min(this.bounds[1], row),
        Math.max(this.bounds[2], right), Math.max(this.bounds[3], row + 1)];
    }
  }

  up() {
    this.done(...this.bounds);
  }

  // The brush under the pointer.
  paint(context, transform) {
    const at = this.editor.viewer.pointer;
    if (!at) return;
    context.beginPath();
    context.arc(at.x, at.y, Math.max(2, this.radius * transform.scale), 0, 7);
    context.lineWidth = 3;
    context.strokeStyle = "rgb(0 0 0 / 0.5)";
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke();
  }
}
