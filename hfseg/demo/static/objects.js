// The list of objects, where the model tells them apart: each with its score and area; hover shows one, a click selects it.

const ORDERS = {
  score: (a, b) => (b.score ?? 2) - (a.score ?? 2) || a.id - b.id,
  area: (a, b) => b.area - a.area || a.id - b.id,
  place: (a, b) => a.bbox[1] - b.bbox[1] || a.bbox[0] - b.bbox[0],
};

class Objects {
  constructor(root, viewer) {
    this.viewer = viewer;
    this.box = root.querySelector(".hv-objects");
    this.list = this.box.querySelector("ul");
    this.counter = this.box.querySelector(".hv-count");
    this.order = this.box.querySelector("select");
    this.order.addEventListener("change", () => this.build());
    this.rows = new Map(); // by key
    const at = (event) => Number(event.target.closest("li")?.dataset.key || 0);
    this.list.addEventListener("click", (event) => at(event) && viewer.choose(at(event), this.layer));
    this.list.addEventListener("pointerover", (event) => viewer.hoverSegment(at(event), this.layer));
    this.list.addEventListener("focusin", (event) => viewer.hoverSegment(at(event), this.layer));
    for (const type of ["pointerleave", "focusout"]) this.list.addEventListener(type, () => viewer.hoverSegment(0, this.layer));
  }

  // Of two models, the one whose object was selected last, or else the left one that has objects.
  get layer() {
    const { layers, chosenLayer } = this.viewer;
    return layers.includes(chosenLayer) && chosenLayer.hasSegments ? chosenLayer : layers.find((one) => one.hasSegments);
  }

  build() {
    const { layer } = this;
    this.box.hidden = !layer;
    this.rows.clear();
    if (!layer) return this.list.replaceChildren();
    const found = layer.segments.map((segment, key) => ({ segment, key })).filter(({ segment }) => segment?.area);
    found.sort((a, b) => ORDERS[this.order.value](a.segment, b.segment));
    this.list.replaceChildren(...found.map(({ segment, key }) => this.row(layer, segment, key)));
    this.refresh();
  }

  row(layer, segment, key) {
    const row = document.createElement("li");
    row.dataset.key = key;
    const button = document.createElement("button");
    button.type = "button";
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${layer.colourOf(segment)})`;
    const part = (className, text) => Object.assign(document.createElement("span"), { className, textContent: text });
    const [left, top, width, height] = segment.bbox;
    button.append(swatch, part("hv-name", `${layer.nameOf(segment.label_id)} #${segment.id}`),
      part("hv-share", segment.score === null ? "–" : segment.score.toFixed(2)), part("hv-area", segment.area.toLocaleString("en")));
    button.title = `${width} × ${height} pixels at ${left}, ${top}`;
    row.append(button);
    this.rows.set(key, row);
    return row;
  }

  // Objects of hidden classes are not listed.
  refresh() {
    const { layer } = this;
    if (!layer) return;
    let shown = 0;
    for (const [key, row] of this.rows) {
      row.hidden = this.viewer.look.hidden.has(layer.nameOf(layer.segments[key].label_id));
      shown += row.hidden ? 0 : 1;
    }
    this.counter.textContent = String(shown);
  }

  mark(key, scroll) {
    this.marked?.classList.remove("hv-marked");
    this.marked = this.rows.get(key);
    this.marked?.classList.add("hv-marked");
    if (scroll) this.marked?.scrollIntoView({ block: "nearest" });
  }
}
