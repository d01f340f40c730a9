// Where the image lies on the screen: fit, pan, zoom, by mouse, wheel, fingers and keys.

class Stage {
  constructor(root, viewer) {
    this.viewer = viewer;
    this.box = root.querySelector(".hv-stage");
    this.canvas = this.box.querySelector("canvas");
    this.transform = { scale: 1, x: 0, y: 0 };
    this.fitted = true;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(this.box);
    const { box } = this;
    box.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    box.addEventListener("pointerdown", (event) => this.down(event));
    box.addEventListener("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "pointercancel"]) box.addEventListener(type, (event) => this.up(event));
    box.addEventListener("pointerleave", () => viewer.pointAt(null));
  }

  get ratio() {
    return this.canvas.width / this.box.clientWidth || 1;
  }

  resize() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [this.box.clientWidth, this.box.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (this.canvas.width === width && this.canvas.height === height) return;
    this.canvas.width = width;
    this.canvas.height = height;
    if (this.fitted) this.fit();
    this.viewer.paint();
  }

  // Rectangles of the canvas in which layers are shown side by side.
  panes() {
    const { width, height } = this.canvas;
    if (!this.viewer.sideBySide) return [{ x: 0, y: 0, width, height }];
    const half = Math.floor((width - 2) / 2);
    return [{ x: 0, y: 0, width: half, height }, { x: width - half, y: 0, width: half, height }];
  }

  fit() {
    const { width, height } = this.viewer.size;
    if (!width) return;
    const pane = this.panes()[0];
    const scale = Math.min(pane.width / width, pane.height / height);
    this.transform = { scale, x: (pane.width - scale * width) / 2, y: (pane.height - scale * height) / 2 };
    this.fitted = true;
    this.box.dataset.zoomed = "false";
  }

  zoom(factor, at) {
    if (!this.viewer.size.width) return;
    const { scale, x, y } = this.transform;
    const { width, height } = this.viewer.size;
    const least = Math.min(this.panes()[0].width / width, this.panes()[0].height / height);
    const next = Math.min(64, Math.max(least, scale * factor));
    if (next === least) return this.fit();
    const change = next / scale;
    this.transform = { scale: next, x: at.x - change * (at.x - x), y: at.y - change * (at.y - y) };
    this.keep();
  }

  pan(dx, dy) {
    if (this.fitted) return;
    this.transform = { ...this.transform, x: this.transform.x + dx, y: this.transform.y + dy };
    this.keep();
  }

  // Some of the image always stays in sight.
  keep() {
    const pane = this.panes()[0];
    const { width, height } = this.viewer.size;
    const hold = (at, size, room) => {
      const shown = size * this.transform.scale;
      return shown <= room ? (room - shown) / 2 : Math.min(0, Math.max(room - shown, at));
    };
    this.transform.x = hold(this.transform.x, width, pane.width);
    this.transform.y = hold(this.transform.y, height, pane.height);
    this.fitted = false;
    this.box.dataset.zoomed = "true";
  }

  centre() {
    const pane = this.panes()[0];
    return { x: pane.width / 2, y: pane.height / 2 };
  }

  // Canvas coordinates within a pane, and the pixel of the image there.
  locate(event) {
    const bounds = this.box.getBoundingClientRect();
    const x = (event.clientX - bounds.left) * this.ratio;
    const y = (event.clientY - bounds.top) * this.ratio;
    const panes = this.panes();
    const pane = panes.length > 1 && x >= panes[1].x ? 1 : 0;
    const at = { x: x - panes[pane].x, y, pane };
    const { scale } = this.transform;
    const column = Math.floor((at.x - this.transform.x) / scale);
    const row = Math.floor((at.y - this.transform.y) / scale);
    const { width, height } = this.viewer.size;
    const inside = column >= 0 && row >= 0 && column < width && row < height;
    return { ...at, column, row, inside, index: row * width + column };
  }

  wheel(event) {
    // Otherwise the page scrolls, as it does everywhere else.
    if (!this.viewer.size.width || !(event.ctrlKey || event.metaKey || this.box.contains(document.activeElement))) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), this.locate(event));
    this.viewer.paint();
  }

  down(event) {
    if (event.target.closest(".hv-handle") || (event.button && event.pointerType === "mouse" && !this.viewer.tool)) return;
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.moved = 0;
    if (this.pointers.size === 1 && this.viewer.tool?.down(this.locate(event), event)) this.using = this.viewer.tool;
    try { this.box.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
  }

  move(event) {
    const at = this.locate(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.viewer.pointAt(at);
    const dx = (event.clientX - before.x) * this.ratio;
    const dy = (event.clientY - before.y) * this.ratio;
    this.moved += Math.abs(dx) + Math.abs(dy);
    if (this.using) {
      this.using.move(at, event);
    } else if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
      this.zoom(distance({ x: event.clientX, y: event.clientY }) / distance(before), at);
    } else {
      this.pan(dx, dy);
    }
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.viewer.pointAt(at);
    this.viewer.paint();
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.using) {
      this.using.up(this.locate(event), event);
      this.using = null;
    } else if (this.moved < 6 && event.type === "pointerup") {
      this.viewer.select(this.locate(event));
    }
  }
}
