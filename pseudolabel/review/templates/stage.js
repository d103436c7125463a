// The image with its mask: shown, zoomed, drawn on. The mask is an array of class ids, row by row, 255 undecided.

import { $ } from "./common.js";

const UNDECIDED = 255, KEPT_STROKES = 40;

export class Stage {
  constructor(onChange, onUnder) {
    this.onChange = onChange;
    this.onUnder = onUnder;
    this.box = $("stage");
    this.sheet = $("sheet");
    [this.picture, this.overlay, this.marks] = ["picture", "overlay", "marks"].map($);
    this.tool = "look";
    this.value = 0;
    this.size = 12;
    this.alpha = 0.55;
    this.outline = true;
    this.visible = true;
    this.colours = [];
    this.ids = null;
    this.strokes = [];
    this.corners = [];
    this.spot = null; // where the keyboard draws
    this.width = this.height = 1;
    this.zoom = 1;
    this.left = this.top = 0;
    this._listen();
  }

  /** Show an image with a mask. */
  load(bitmap, ids, width, height) {
    const same = this.width === width && this.height === height;
    [this.width, this.height] = [width, height];
    for (const canvas of [this.picture, this.overlay, this.marks]) {
      canvas.width = width;
      canvas.height = height;
    }
    this.corners = [];
    this.spot = null;
    this.setPicture(bitmap);
    this.setMask(ids);
    if (!same || this.fitted !== false) this.fit();
    this.drawMarks();
  }

  setPicture(bitmap) {
    const context = this.picture.getContext("2d");
    context.clearRect(0, 0, this.width, this.height);
    if (bitmap) context.drawImage(bitmap, 0, 0, this.width, this.height);
  }

  /** Replace the mask; what was drawn before cannot be undone any more. */
  setMask(ids) {
    this.ids = ids && ids.length === this.width * this.height ? ids : null;
    this.strokes = [];
    this.paint();
  }

  get drawn() { return this.strokes.length > 0; }

  undoStroke() {
    if (this.corners.length) {
      this.corners.pop();
      this.drawMarks();
      return true;
    }
    if (!this.strokes.length) return false;
    this.ids = this.strokes.pop();
    this.paint();
    this.onChange();
    return true;
  }

  /** Paint the mask's colours, in a part of the image or all of it; stripes where it is undecided. */
  paint(x0 = 0, y0 = 0, x1 = this.width, y1 = this.height) {
    const context = this.overlay.getContext("2d");
    [x0, y0] = [Math.max(0, x0 - 1), Math.max(0, y0 - 1)];
    [x1, y1] = [Math.min(this.width, x1 + 1), Math.min(this.height, y1 + 1)];
    if (x1 <= x0 || y1 <= y0) return;
    if (!this.ids || !this.visible) {
      context.clearRect(x0, y0, x1 - x0, y1 - y0);
      return;
    }
    const { ids, width, height, outline } = this;
    const data = context.createImageData(x1 - x0, y1 - y0), pixels = new Uint32Array(data.data.buffer);
    const plain = this._table(this.alpha), edge = this._table(1);
    const light = this._packed(240, 240, 240, this.alpha), dark = this._packed(60, 60, 60, this.alpha);
    let at = 0;
    for (let y = y0; y < y1; y++) {
      for (let x = x0, from = y * width + x0; x < x1; x++, from++, at++) {
        const id = ids[from];
        let colour = plain[id];
        if (id === UNDECIDED) colour = ((x + y) >> 2) & 1 ? light : dark;
        if (outline && ((x + 1 < width && ids[from + 1] !== id) || (y + 1 < height && ids[from + width] !== id)
            || (x > 0 && ids[from - 1] !== id) || (y > 0 && ids[from - width] !== id))) {
          colour = id ? edge[id] : colour;
        }
        pixels[at] = colour;
      }
    }
    context.putImageData(data, x0, y0);
  }

  _packed(red, green, blue, alpha) {
    return ((Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  }

  _table(alpha) {
    const table = new Uint32Array(256);
    for (let id = 1; id < 256; id++) {
      const [red, green, blue] = this.colours[id] || [255, 0, 255];
      table[id] = this._packed(red, green, blue, alpha);
    }
    if (alpha === 1) table[UNDECIDED] = this._packed(255, 255, 255, 1);
    return table;
  }

  // Where things are -------------------------------------------------------------------------------------------------

  fit() {
    const { clientWidth, clientHeight } = this.box;
    this.zoom = Math.min(clientWidth / this.width, clientHeight / this.height) || 1;
    this.left = (clientWidth - this.width * this.zoom) / 2;
    this.top = (clientHeight - this.height * this.zoom) / 2;
    this.fitted = true;
    this._place();
  }

  zoomBy(factor, x = this.box.clientWidth / 2, y = this.box.clientHeight / 2) {
    const zoom = Math.min(40, Math.max(0.05, this.zoom * factor));
    this.left = x - (x - this.left) * (zoom / this.zoom);
    this.top = y - (y - this.top) * (zoom / this.zoom);
    this.zoom = zoom;
    this.fitted = false;
    this._place();
  }

  _place() {
    this.sheet.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.zoom})`;
    this.sheet.classList.toggle("near", this.zoom > 2);
    this._showCursor();
  }

  _pixel(event) {
    const box = this.box.getBoundingClientRect();
    return [(event.clientX - box.left - this.left) / this.zoom, (event.clientY - box.top - this.top) / this.zoom];
  }

  // Drawing ----------------------------------------------------------------------------------------------------------

  get ink() { return this.tool === "eraser" ? 0 : this.value; }

  /** Whether the tool draws: not on a mask that is not shown. */
  get drawing() { return this.tool !== "look" && this.ids !== null && this.visible; }

  _begin() {
    this.strokes.push(this.ids.slice());
    if (this.strokes.length > KEPT_STROKES) this.strokes.shift();
  }

  /** Draw a line of dots. */
  line(x0, y0, x1, y1) {
    const radius = this.size / 2, steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, radius / 2)));
    for (let step = 0; step <= steps; step++) {
      this._dot(x0 + ((x1 - x0) * step) / steps, y0 + ((y1 - y0) * step) / steps, radius);
    }
    const reach = Math.ceil(radius) + 1;
    this.paint(Math.floor(Math.min(x0, x1)) - reach, Math.floor(Math.min(y0, y1)) - reach,
      Math.ceil(Math.max(x0, x1)) + reach, Math.ceil(Math.max(y0, y1)) + reach);
  }

  _dot(x, y, radius) {
    const ink = this.ink, square = radius * radius;
    for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(this.height - 1, y + radius); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column <= Math.min(this.width - 1, x + radius); column++) {
        const dx = column + 0.5 - x, dy = row + 0.5 - y;
        if (dx * dx + dy * dy <= square || (Math.floor(x) === column && Math.floor(y) === row)) {
          this.ids[row * this.width + column] = ink;
        }
      }
    }
  }

  /** Fill the polygon: pixels whose middle lies inside it, by the even-odd rule. */
  closePolygon() {
    const corners = this.corners;
    this.corners = [];
    this.drawMarks();
    if (corners.length < 3 || !this.ids) return false;
    this._begin();
    for (let row = 0; row < this.height; row++) {
      const y = row + 0.5, cuts = [];
      corners.forEach(([ax, ay], index) => {
        const [bx, by] = corners[(index + 1) % corners.length];
        if ((ay <= y) !== (by <= y)) cuts.push(ax + ((y - ay) * (bx - ax)) / (by - ay));
      });
      cuts.sort((a, b) => a - b);
      for (let pair = 0; pair + 1 < cuts.length; pair += 2) {
        const from = Math.max(0, Math.ceil(cuts[pair] - 0.5)), to = Math.min(this.width, Math.ceil(cuts[pair + 1] - 0.5));
        if (to > from) this.ids.fill(this.ink, row * this.width + from, row * this.width + to);
      }
    }
    this.paint();
    this.onChange();
    return true;
  }

  dropPolygon() {
    const had = this.corners.length > 0;
    this.corners = [];
    this.drawMarks();
    return had;
  }

  drawMarks() {
    const context = this.marks.getContext("2d"), dot = Math.max(1, 3 / this.zoom);
    context.clearRect(0, 0, this.width, this.height);
    const line = (width, colour) => {
      context.lineWidth = width / this.zoom;
      context.strokeStyle = colour;
      context.stroke();
    };
    if (this.corners.length) {
      context.beginPath();
      this.corners.forEach(([x, y]) => context.lineTo(x, y));
      line(3, "#000");
      line(1.5, "#fff");
      for (const [x, y] of this.corners) {
        context.fillStyle = "#fff";
        context.fillRect(x - dot, y - dot, 2 * dot, 2 * dot);
      }
    }
    if (this.spot && this.drawing) {
      const [x, y] = this.spot, reach = Math.max(8 / this.zoom, this.size / 2);
      context.beginPath();
      context.arc(x, y, reach, 0, 7);
      context.moveTo(x - reach, y);
      context.lineTo(x + reach, y);
      context.moveTo(x, y - reach);
      context.lineTo(x, y + reach);
      line(3, "#000");
      line(1.5, "#fff");
    }
  }

  // Mouse, pen, finger, keyboard -------------------------------------------------------------------------------------

  _listen() {
    this.box.addEventListener("pointerdown", (event) => this._down(event));
    this.box.addEventListener("pointermove", (event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) this.box.addEventListener(name, () => this._up());
    this.box.addEventListener("pointerleave", () => { this.pointer = null; this._showCursor(); this.onUnder(null); });
    this.box.addEventListener("blur", () => { this.pointing = false; });
    this.box.addEventListener("dblclick", () => { if (this.tool === "polygon") this.closePolygon(); });
    this.box.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.box.getBoundingClientRect();
      this.zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    new ResizeObserver(() => { if (this.fitted !== false) this.fit(); }).observe(this.box);
  }

  _down(event) {
    this.pointing = true; // arrows go to other images then; who came here by Tab moves with them
    this.box.focus({ preventScroll: true });
    this.box.setPointerCapture(event.pointerId);
    this.spot = null;
    const [x, y] = this._pixel(event);
    if (!this.drawing || event.button === 1) {
      this.panning = [event.clientX - this.left, event.clientY - this.top];
    } else if (event.button === 0 && this.tool === "polygon") {
      this.corners.push([x, y]);
      this.drawMarks();
    } else if (event.button === 0) {
      this._begin();
      this.last = [x, y];
      this.line(x, y, x, y);
    }
  }

  _move(event) {
    this.pointer = event;
    this._showCursor();
    const [x, y] = this._pixel(event);
    const inside = this.ids && x >= 0 && y >= 0 && x < this.width && y < this.height;
    this.onUnder(inside ? this.ids[Math.floor(y) * this.width + Math.floor(x)] : null);
    if (this.panning) {
      this.left = event.clientX - this.panning[0];
      this.top = event.clientY - this.panning[1];
      this.fitted = false;
      this._place();
    } else if (this.last) {
      this.line(...this.last, x, y);
      this.last = [x, y];
    }
  }

  _up() {
    if (this.last) this.onChange();
    this.panning = this.last = null;
  }

  _showCursor() {
    const cursor = $("cursor"), event = this.pointer;
    cursor.hidden = !event || !this.drawing || this.tool === "polygon";
    if (cursor.hidden) return;
    const box = this.box.getBoundingClientRect(), across = Math.max(2, this.size * this.zoom);
    cursor.style.width = cursor.style.height = `${across}px`;
    const [x, y] = [event.clientX - box.left - across / 2, event.clientY - box.top - across / 2];
    cursor.style.transform = `translate(${x}px, ${y}px)`;
  }

  /** Move or draw by keyboard while the image has the focus and a tool is chosen; return whether the key was one. */
  key(event) {
    if (!this.drawing || this.pointing) return false;
    const step = event.shiftKey ? 10 : 1;
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const way = ways[event.key];
    if (!way && event.key !== " ") return false;
    const [x, y] = this.spot || [Math.floor(this.width / 2) + 0.5, Math.floor(this.height / 2) + 0.5];
    this.spot = [x, y];
    if (way) {
      this.spot = [Math.min(this.width - 0.5, Math.max(0.5, x + way[0])), Math.min(this.height - 0.5, Math.max(0.5, y + way[1]))];
    } else if (this.tool === "polygon") {
      this.corners.push([x, y]);
    } else {
      this._begin();
      this.line(x, y, x, y);
      this.onChange();
    }
    this.drawMarks();
    this.onUnder(this.ids[Math.floor(this.spot[1]) * this.width + Math.floor(this.spot[0])]);
    return true;
  }
}

/** A mask as a list of class id and length of each run. */
export function runsOf(ids) {
  const runs = [];
  for (let at = 0; at < ids.length;) {
    let end = at + 1;
    while (end < ids.length && ids[end] === ids[at]) end++;
    runs.push(ids[at], end - at);
    at = end;
  }
  return runs;
}
