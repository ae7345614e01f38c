// What the page asks of the server. Requests go one after the other; a newer drawing or view replaces one that waits.

/** Returns {header, arrays} of an answer: a JSON header, then the numbers of all arrays as float32. */
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const arrays = header.arrays.map((row) => {
    const count = row.shape.reduce((product, size) => product * size, 1);
    const data = new Float32Array(buffer, at, count);
    at += 4 * count;
    return { ...row, data };
  });
  return { header, arrays };
}

export async function about() {
  const response = await fetch("api/about");
  if (!response.ok) throw new Error((await response.json()).error);
  return response.json();
}

export class Server {
  /** view() returns the query of what is on the page; shown(answer), found(answer) and failed(sentence) are called. */
  constructor(view, shown, found, failed) {
    Object.assign(this, { view, shown, found, failed });
    this.changes = [];
    this.waiting = { ink: null, look: null, neuron: null };
    this.running = false;
    this.measured = 0;
  }

  /** A change that must not be lost, such as an edit: it comes after the drawing that waits, or replaces it. */
  change(name, body) {
    const { ink } = this.waiting;
    this.waiting.ink = null;
    if (ink && name !== "example" && name !== "photo") this.changes.push(ink);
    this.changes.push({ name, body });
    this.#run();
  }

  draw(ink, since) {
    this.waiting.ink = { name: "ink", body: ink, since };
    this.#run();
  }

  look() {
    this.waiting.look = { name: "look", body: {} };
    this.#run();
  }

  neuron(layer, index) {
    this.waiting.neuron = { name: "neuron", body: { layer, index } };
    this.#run();
  }

  #next() {
    const change = this.changes.shift();
    if (change) return change;
    for (const kind of ["ink", "look", "neuron"]) {
      const request = this.waiting[kind];
      this.waiting[kind] = null;
      if (request) return request;
    }
    return null;
  }

  async #run() {
    if (this.running) return;
    this.running = true;
    for (let request = this.#next(); request; request = this.#next()) {
      if (request.name !== "neuron") this.waiting.look = null; // every other answer shows all
      try {
        await this.#ask(request);
      } catch (error) {
        console.warn(error.message);
        this.failed("The server does not answer. Is xcnn serve still running?");
      }
    }
    this.running = false;
  }

  #measure(since) {
    if (++this.measured % 1000 === 0) performance.clearMeasures("stroke");
    performance.measure("stroke", { start: since });
  }

  async #ask({ name, body, since }) {
    const binary = body instanceof Uint8Array || body instanceof Blob;
    const response = await fetch(`api/${name}${name === "neuron" ? "" : this.view()}`, {
      method: "POST",
      headers: { "content-type": binary ? "application/octet-stream" : "application/json" },
      body: binary ? body : JSON.stringify(body),
    });
    if (response.status === 429 || response.status === 503) {
      await new Promise((go) => setTimeout(go, 1000)); // then once more, unless a newer one waits
      if (!(name in this.waiting)) this.changes.unshift({ name, body, since });
      else this.waiting[name] ??= { name, body, since };
      return;
    }
    if (!response.ok) return this.failed((await response.json()).error);
    const answer = unpack(await response.arrayBuffer());
    if (name === "neuron") {
      this.found(answer);
    } else {
      this.shown(answer, name);
      // From the movement of the pen to the frame in which the maps are on the screen; see the browser's profiler.
      if (since) requestAnimationFrame(() => setTimeout(() => this.#measure(since)));
    }
  }
}
