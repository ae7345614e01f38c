// The drawing pad: strokes of mouse, finger, pen and keyboard, sent as the ink of each of its pixels.

const STEP = 4; // pixels that a key moves the pen

export class Pad {
  /** drawn(ink, since) is called with a byte per pixel after each movement; told(sentence) for screen readers. */
  constructor(element, side, light, drawn, told) {
    this.element = element;
    this.drawn = drawn;
    this.told = told;
    this.side = side;
    this.pen = element.querySelector("span");
    this.canvas = element.querySelector("canvas");
    this.canvas.width = this.canvas.height = side;
    element.classList.add(light ? "light" : "dark");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    const color = light ? "#fff" : "#000";
    Object.assign(this.context, { lineWidth: side / 14, lineCap: "round", lineJoin: "round", strokeStyle: color });
    Object.assign(this.context, { shadowColor: color, shadowBlur: side / 56 }); // soft edges, as of scanned ink
    this.at = null; // the last point of a stroke
    this.key = { x: side / 2, y: side / 4, down: false };
    element.addEventListener("pointerdown", (event) => this.#start(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      element.addEventListener(name, (event) => event.pointerId === this.pointer && (this.at = null));
    }
    element.addEventListener("keydown", (event) => this.#press(event));
    element.addEventListener("focus", () => this.#place());
    element.addEventListener("blur", () => {
      this.key.down = false;
      this.pen.hidden = true;
    });
  }

  clear() {
    this.context.clearRect(0, 0, this.side, this.side);
    this.#send(performance.now());
  }

  /** Empties the pad for a picture from elsewhere. */
  wipe() {
    this.context.clearRect(0, 0, this.side, this.side);
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.side, y: ((event.clientY - box.top) / box.height) * this.side };
  }

  #start(event) {
    if (event.button !== 0 || this.at) return; // a second finger does not draw
    event.preventDefault();
    this.element.focus({ preventScroll: true });
    this.pen.hidden = true;
    this.element.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.at = this.#point(event);
    this.#line(this.at);
    this.#send(performance.now());
  }

  #move(event) {
    if (!this.at || event.pointerId !== this.pointer) return;
    const since = performance.now();
    const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of all.length ? all : [event]) this.#line(this.#point(one));
    this.#send(since);
  }

  #line(to) {
    this.context.beginPath();
    this.context.moveTo(this.at.x, this.at.y);
    this.context.lineTo(to.x + 0.01, to.y); // a dot if both are the same
    this.context.stroke();
    this.at = to;
  }

  #place() {
    this.pen.hidden = !this.element.matches(":focus-visible");
    this.pen.classList.toggle("down", this.key.down);
    this.pen.style.left = `${(this.key.x / this.side) * 100}%`;
    this.pen.style.top = `${(this.key.y / this.side) * 100}%`;
  }

  #press(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const key = this.key;
    if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else if (event.key === " ") {
      key.down = !key.down;
      this.told(key.down ? "pen down" : "pen up");
      this.#stroke(0, 0);
    } else if (event.key in moves) {
      const far = event.shiftKey ? 3 * STEP : STEP;
      this.#stroke(moves[event.key][0] * far, moves[event.key][1] * far);
    } else return;
    event.preventDefault();
    this.#place();
  }

  #stroke(dx, dy) {
    const key = this.key;
    this.at = { x: key.x, y: key.y };
    key.x = Math.min(this.side, Math.max(0, key.x + dx));
    key.y = Math.min(this.side, Math.max(0, key.y + dy));
    if (key.down) {
      this.#line({ x: key.x, y: key.y });
      this.#send(performance.now());
    }
    this.at = null;
  }

  #send(since) {
    const pixels = this.context.getImageData(0, 0, this.side, this.side).data;
    const ink = new Uint8Array(this.side * this.side);
    for (let i = 0; i < ink.length; i++) ink[i] = pixels[4 * i + 3];
    this.drawn(ink, since);
  }
}
