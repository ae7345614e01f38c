// The layers: a canvas for every map, coloured from the network's numbers, and the choice of a neuron on them.

let colors = null;

/** Returns 511 colours for -1 to 1 as 32-bit pixels, from the palette of the style sheet. */
function palette() {
  if (colors) return colors;
  const style = getComputedStyle(document.documentElement);
  const [zero, positive, negative] = ["--zero", "--positive", "--negative"].map((name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const long = hex.length === 3 ? [...hex].map((digit) => digit + digit).join("") : hex;
    return [0, 2, 4].map((at) => parseInt(long.slice(at, at + 2), 16));
  });
  colors = new Uint32Array(511);
  for (let i = 0; i < 511; i++) {
    const share = Math.abs(i - 255) / 255;
    const end = i < 255 ? negative : positive;
    const [r, g, b] = zero.map((from, k) => Math.round(from + (end[k] - from) * share));
    colors[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return colors;
}

export function themeChanged() {
  colors = null;
}

/** Returns the colour of a number as CSS. */
export function color(value, scale) {
  const pixel = palette()[place(value, scale)];
  return `rgb(${pixel & 255} ${(pixel >> 8) & 255} ${(pixel >> 16) & 255})`;
}

function place(value, scale) {
  return 255 + Math.round(Math.max(-1, Math.min(1, value / scale || 0)) * 255);
}

/** Draws numbers (h, w) from `start` on; those that are missing at the end stay transparent. */
export function paint(canvas, numbers, start, h, w, scale) {
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.pixels = null;
  }
  const context = canvas.getContext("2d");
  canvas.pixels ??= context.createImageData(w, h);
  const pixels = new Uint32Array(canvas.pixels.data.buffer);
  const table = palette();
  const end = Math.min(h * w, numbers.length - start);
  for (let i = 0; i < end; i++) pixels[i] = table[place(numbers[start + i], scale)];
  context.putImageData(canvas.pixels, 0, 0);
}

/** Draws what speaks for (red) and against (blue) over a picture, the more opaque the larger. */
export function paintOver(canvas, numbers, h, w) {
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d");
  const image = context.createImageData(w, h);
  const most = numbers.reduce((peak, one) => Math.max(peak, Math.abs(one) || 0), 0) || 1;
  for (let i = 0; i < h * w; i++) {
    const [r, g, b] = numbers[i] > 0 ? [255, 70, 50] : [50, 130, 255];
    image.data.set([r, g, b, 255 * Math.min(1, Math.abs(numbers[i]) / most)], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

/** Draws an image (1 or 3, h, w) of numbers from 0 to 1 in its own colours. */
export function paintImage(canvas, numbers, [c, h, w]) {
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d");
  const image = context.createImageData(w, h);
  for (let i = 0; i < h * w; i++) {
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = 255 * numbers[(c === 3 ? k * h * w : 0) + i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

const number = (value) => (Number.isFinite(value) ? Number(value.toPrecision(3)).toString() : "not finite");

export class Layers {
  /** chosen(layer, index, byKey) is called for a neuron, seen() when other layers come into view, onward() by Enter. */
  constructor(list, layers, chosen, seen, onward) {
    Object.assign(this, { layers, chosen, seen, onward });
    this.mode = "y";
    this.visible = new Set();
    this.marker = element("span", "", "cell");
    this.inside = null; // the neuron that the keys move: {button, layer, channel, row, column}
    this.kept = false;
    this.observer = new IntersectionObserver((entries) => this.#observe(entries), { rootMargin: "300px" });
    this.rows = layers.map((layer, place) => {
      const row = element("li", "", "layer");
      const head = element("div", "", "about");
      head.append(element("h3", `${layer.name} ${layer.kind}`), element("span", this.#describe(layer), "small"));
      const maps = element("div", "", "maps");
      maps.role = "group";
      maps.ariaLabel = `maps of ${layer.name} ${layer.kind}`;
      row.append(head, maps);
      list.append(row);
      row.dataset.place = place;
      const made = { row, maps, layer, place, count: layer.shown, buttons: [], more: null };
      if (layer.drawn) {
        this.observer.observe(row);
        this.#grow(made);
      } else maps.append(element("p", "Its output is not made of maps, so it is not drawn.", "small"));
      return made;
    });
  }

  #describe({ shape, text, parameters }) {
    const size = shape.length === 3 ? `${shape[0]} maps of ${shape[1]} × ${shape[2]}` : `${shape.join(" × ")} numbers`;
    return `${size} · ${parameters ? `${parameters.toLocaleString("en")} parameters` : "no parameters"} · ${text}`;
  }

  #observe(entries) {
    const before = this.visible.size;
    let more = false;
    for (const entry of entries) {
      const place = Number(entry.target.dataset.place);
      if (!entry.isIntersecting) this.visible.delete(place);
      else if (!this.visible.has(place)) more = Boolean(this.visible.add(place));
    }
    if (more || !before) this.seen();
  }

  /** Which maps are asked for, as the server wants it: place:count. */
  query() {
    return [...this.visible].map((place) => `${place}:${this.rows[place].count}`).join(",");
  }

  #grid({ shape }) {
    if (shape.length === 3) return { h: shape[1], w: shape[2] };
    const w = shape[0] <= 32 ? shape[0] : Math.min(32, Math.ceil(Math.sqrt(shape[0] * 3)));
    return { h: Math.ceil(shape[0] / w), w };
  }

  /** Makes the buttons of a layer, and the one for more. */
  #grow(row) {
    const { layer } = row;
    const { h, w } = this.#grid(layer);
    const vector = layer.shape.length === 1;
    const wide = vector ? w * (h > 1 ? 10 : Math.min(24, 320 / w)) : Math.max(40, Math.min(72, w * 2.4)) * Math.sqrt(w / h);
    for (let channel = row.buttons.length; channel < (vector ? 1 : row.count); channel++) {
      const button = element("button", "", "map");
      button.type = "button";
      button.tabIndex = channel ? -1 : 0;
      button.ariaLabel = `${layer.name} ${layer.kind}${vector ? "" : `, channel ${channel}`}`;
      button.style.width = `${wide}px`;
      button.style.aspectRatio = `${w} / ${h}`;
      const canvas = document.createElement("canvas");
      button.append(canvas);
      const at = (event) => this.#under(event, canvas, row, channel);
      canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && !this.kept && this.#choose(row, button, at(event)));
      button.addEventListener("click", (event) => this.#click(row, button, channel, event.detail ? at(event) : null));
      button.addEventListener("keydown", (event) => this.#press(event, row, button, channel));
      button.addEventListener("blur", () => this.#leave());
      row.buttons.push(button);
      row.maps.insertBefore(button, row.more);
    }
    const left = vector ? 0 : layer.shape[0] - row.count;
    row.more?.remove();
    row.more = null;
    if (left > 0) {
      row.more = element("button", `Show ${Math.min(left, 32)} more of ${left}`);
      row.more.type = "button";
      row.more.addEventListener("click", () => {
        row.count = Math.min(layer.shape[0], row.count + 32);
        this.#grow(row);
        this.seen();
      });
      row.maps.append(row.more);
    }
  }

  /** Returns the neuron under the pointer. */
  #under(event, canvas, { layer }, channel) {
    const { h, w } = this.#grid(layer);
    const box = canvas.getBoundingClientRect();
    const cell = (position, size, count) => Math.max(0, Math.min(count - 1, Math.floor((position / size) * count)));
    return { channel, row: cell(event.clientY - box.top, box.height, h), column: cell(event.clientX - box.left, box.width, w) };
  }

  #choose(row, button, { channel, row: y, column: x }, byKey = false) {
    const { h, w } = this.#grid(row.layer);
    const vector = row.layer.shape.length === 1;
    if (vector && y * w + x >= row.layer.shape[0]) return;
    const mark = { left: x / w, top: y / h, width: 1 / w, height: 1 / h };
    for (const [side, share] of Object.entries(mark)) this.marker.style[side] = `${share * 100}%`;
    button.append(this.marker);
    this.at = { channel, row: y, column: x };
    this.chosen(row.place, vector ? [y * w + x] : [channel, y, x], byKey);
  }

  #click(row, button, channel, at) {
    if (at) {
      this.kept = !this.kept || this.marker.parentElement !== button;
      this.#choose(row, button, at);
      return;
    }
    if (this.inside) return this.onward(); // a key: into the map, where it was or at the middle, and then on to its panel
    const { h, w } = this.#grid(row.layer);
    const middle = { channel, row: Math.floor((h - 1) / 2), column: Math.floor((w - 1) / 2) };
    this.inside = { button, ...(this.marker.parentElement === button ? this.at : middle) };
    button.classList.add("inside");
    this.kept = true;
    this.#choose(row, button, this.inside, true);
  }

  #leave() {
    this.inside?.button.classList.remove("inside");
    this.inside = null;
  }

  /** Moves the focus from the panel of a neuron back to its map. */
  back() {
    this.marker.parentElement?.focus();
  }

  release() {
    this.kept = false;
    this.marker.remove();
  }

  #press(event, row, button, channel) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape" && this.inside) this.#leave();
    else if (event.key in moves) {
      const [dy, dx] = moves[event.key];
      if (this.inside) {
        const { h, w } = this.#grid(row.layer);
        this.inside.row = Math.max(0, Math.min(h - 1, this.inside.row + dy));
        this.inside.column = Math.max(0, Math.min(w - 1, this.inside.column + dx));
        this.#choose(row, button, this.inside, true);
      } else this.#focus(row, channel, dy, dx);
    } else return;
    event.preventDefault();
  }

  #focus(row, channel, dy, dx) {
    let next = row.buttons[channel + dx];
    if (dy) {
      const drawn = this.rows.filter(({ buttons }) => buttons.length);
      const other = drawn[drawn.indexOf(row) + dy];
      next = other?.buttons[Math.min(channel, other.buttons.length - 1)];
    } else if (next) for (const one of row.buttons) one.tabIndex = one === next ? 0 : -1;
    next?.focus();
  }

  /** Draws the maps of an answer, and marks the channels that are off. Their names follow when the pen rests. */
  draw(arrays, off) {
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.#name(arrays), 150);
    for (const array of arrays) {
      if (array.kind !== this.mode) continue;
      const row = this.rows[array.layer];
      const { layer, buttons } = row;
      const { h, w } = this.#grid(layer);
      const scale = Math.max(Math.abs(array.low), Math.abs(array.high)) || 1;
      const switched = new Set(off[layer.name] ?? []);
      buttons.forEach((button, channel) => {
        const start = channel * h * w;
        if (start >= array.data.length) return;
        paint(button.firstChild, array.data, start, h, w, scale);
        button.classList.toggle("off", switched.has(channel) && layer.shape.length === 3);
      });
    }
  }

  /** Says in words what each map shows, for screen readers. */
  #name(arrays) {
    for (const { kind, layer: place, shape, data } of arrays) {
      if (kind !== this.mode) continue;
      const { layer, buttons } = this.rows[place];
      const [count, h, w] = shape;
      const size = shape.length === 3 ? h * w : count;
      buttons.slice(0, data.length / size).forEach((button, channel) => {
        const map = data.subarray(channel * size, (channel + 1) * size);
        const [low, high] = [Math.min, Math.max].map((end) => number(map.reduce((a, b) => end(a, b))));
        const part = shape.length === 3 ? `channel ${channel}, ${h} by ${w}` : `${count} numbers`;
        const off = button.classList.contains("off") ? ", switched off" : "";
        const what = `${kind === "y" ? "" : "gradient of "}${layer.name} ${layer.kind}`;
        button.ariaLabel = `${what}, ${part}, from ${low} to ${high}${off}`;
      });
    }
  }

  /** Lets the layers light up one after the other from the last to the first, as the gradient runs. */
  flow() {
    const count = this.rows.length;
    for (const { row } of this.rows) row.classList.remove("flow");
    void this.rows[0]?.row.offsetWidth; // so that the animation begins again
    this.rows.forEach(({ row }, place) => {
      row.style.setProperty("--wait", `${(count - 1 - place) * Math.min(0.06, 1.5 / count)}s`);
      row.classList.add("flow");
    });
  }
}
