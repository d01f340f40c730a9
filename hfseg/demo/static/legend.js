// The list of classes, by area. Names come from strangers: they are only ever set as text.

class Legend {
  constructor(root, viewer) {
    this.viewer = viewer;
    this.list = root.querySelector(".hv-legend");
    this.search = root.querySelector(".hv-search");
    this.counter = root.querySelector(".hv-count");
    this.hint = root.querySelector(".hv-hint");
    this.search.addEventListener("input", () => this.filter());
    root.querySelector("[data-act=all]").addEventListener("click", () => this.show(() => true));
    root.querySelector("[data-act=none]").addEventListener("click", () => this.show(() => false));
  }

  // Entries by name over all layers, the largest first.
  entries() {
    const found = new Map();
    this.viewer.layers.forEach((layer, number) => {
      for (const one of layer.classes.values()) {
        const pixels = layer.pixels[one.id];
        if (!pixels) continue;
        const entry = found.get(one.name) || { name: one.name, colour: one.colour, shares: [] };
        entry.shares[number] = (entry.shares[number] || 0) + pixels / layer.ids.length;
        found.set(one.name, entry);
      }
    });
    const total = (entry) => entry.shares.reduce((sum, share) => sum + (share || 0), 0);
    return [...found.values()].sort((a, b) => total(b) - total(a));
  }

  build() {
    const { viewer } = this;
    const entries = this.entries();
    this.list.replaceChildren(...entries.map((entry) => this.row(entry, entries[0])));
    this.counter.textContent = entries.length ? String(entries.length) : "";
    this.search.hidden = entries.length <= 12;
    this.hint.hidden = !entries.length;
    if (this.search.hidden) this.search.value = "";
    viewer.root.dataset.compared = String(viewer.layers.length > 1);
    this.filter();
  }

  row(entry, largest) {
    const { viewer } = this;
    const row = document.createElement("li");
    row.dataset.name = entry.name;
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = !viewer.look.hidden.has(entry.name);
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${parseColour(entry.colour)})`;
    const name = document.createElement("span");
    name.className = "hv-name";
    name.textContent = entry.name;
    name.title = entry.name;
    label.append(box, swatch, name);
    const only = document.createElement("button");
    only.type = "button";
    only.className = "hv-only";
    only.textContent = "only";
    only.setAttribute("aria-label", `Show only ${entry.name}`);
    row.append(label, only);
    viewer.layers.forEach((_, number) => {
      const share = document.createElement("span");
      share.className = "hv-share";
      share.textContent = formatShare(entry.shares[number]);
      row.append(share);
    });
    row.style.setProperty("--share", `${100 * (entry.shares[0] || 0) / (largest.shares[0] || 1)}%`);
    row.style.setProperty("--colour", swatch.style.background);
    box.addEventListener("change", () => viewer.toggle(entry.name, box.checked));
    only.addEventListener("click", () => this.solo(entry.name));
    row.addEventListener("dblclick", (event) => {
      event.preventDefault();
      this.solo(entry.name);
    });
    for (const type of ["pointerenter", "focusin"]) row.addEventListener(type, () => viewer.hover(entry.name));
    for (const type of ["pointerleave", "focusout"]) row.addEventListener(type, () => viewer.hover(null));
    return row;
  }

  names() {
    return [...this.list.children].map((row) => row.dataset.name);
  }

  // One class alone; again, and all come back.
  solo(name) {
    const others = this.names().filter((one) => one !== name);
    const alone = others.every((one) => this.viewer.look.hidden.has(one)) && !this.viewer.look.hidden.has(name);
    this.show((one) => alone || one === name);
  }

  show(wanted) {
    const { hidden } = this.viewer.look;
    for (const name of this.names()) wanted(name) ? hidden.delete(name) : hidden.add(name);
    this.refresh();
    this.viewer.objects.refresh();
    this.viewer.paint();
  }

  refresh() {
    for (const row of this.list.children) {
      row.querySelector("input").checked = !this.viewer.look.hidden.has(row.dataset.name);
    }
  }

  mark(name) {
    for (const row of this.list.children) row.classList.toggle("hv-marked", row.dataset.name === name);
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const row of this.list.children) row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
  }
}

function formatShare(share) {
  if (!share) return "–";
  const percent = 100 * share;
  return percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
}
