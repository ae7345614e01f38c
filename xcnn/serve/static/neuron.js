// The panel of a neuron: its value, what feeds it, number by number, and the weights, which can be changed.

import { color, element } from "./maps.js";

const MOST = 12; // rows of the table of a linear layer
const OFF = "Switched off, so the value is 0 whatever comes in. When it is on, it is computed so:";

const number = (value, digits = 3) => (Number.isFinite(value) ? Number(value.toPrecision(digits)).toString().replace("-", "−") : "not finite");
const plain = (value, digits) => value.toFixed(digits).replace(/^-(0\.0*)$/, "$1");
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);
const peak = (numbers) => numbers.reduce((most, one) => Math.max(most, Math.abs(one) || 0), 0) || 1;

export class Neuron {
  /** picture is the canvas of the input; change(name, body) is called for a change of the network. */
  constructor(panel, layers, picture, change) {
    Object.assign(this, { panel, layers, picture, change });
    this.body = panel.querySelector("#neuron-body");
    this.channel = null; // of the input, as chosen
    this.key = "";
  }

  /** Shows the answer about a neuron, and the gradient of the chosen class at it, or null. */
  show({ header, arrays }, gradient) {
    this.gradient = gradient;
    this.answer = { header, arrays: Object.fromEntries(arrays.map((array) => [array.kind, array])) };
    const { layer, index, feeds } = header;
    const key = `${layer}/${index[0]}/${feeds.kind}`;
    if (this.layer !== layer) this.channel = null;
    this.layer = layer;
    if (key !== this.key) this.#build();
    this.key = key;
    this.#refresh();
  }

  #where() {
    const { header } = this.answer;
    const { name, kind, shape } = this.layers[header.layer];
    const [c, row, column] = header.index;
    const where = shape.length === 3 ? `channel ${c}, row ${row}, column ${column}` : `number ${c}`;
    return `${name} ${kind}, ${where}`;
  }

  #build() {
    const { header } = this.answer;
    this.where = element("p");
    this.value = element("p", "", "value");
    this.off = element("button", shapeWord(this.layers[header.layer]));
    this.off.type = "button";
    this.off.id = "off";
    this.off.addEventListener("click", () => {
      const { layer, index, off } = this.answer.header;
      this.change("switch", { layer, channel: index[0], off: !off });
    });
    this.sees = element("p", "", "small");
    this.parts = element("div");
    this.shown = null;
    const top = element("div", "", "row top");
    top.append(this.value, this.off);
    this.sight = element("div", "", "sight"); // the picture again, as it may be out of view
    this.sight.append(document.createElement("canvas"), element("span", "", "cell"));
    this.sight.ariaHidden = "true";
    this.body.replaceChildren(this.sight, this.where, top, this.sees, this.parts);
  }

  /** Writes the numbers; what has the focus stays. */
  #refresh() {
    const { header } = this.answer;
    const { field } = header;
    const slope = this.gradient === null ? "" : `, gradient ${number(this.gradient)}`;
    this.where.textContent = this.#where();
    this.value.ariaLive = this.spoken ? "polite" : "off";
    this.value.textContent = `${number(header.value, 4)}${header.off ? " (switched off)" : ""}${slope}`;
    this.off.ariaPressed = String(header.off);
    this.sight.hidden = field.some(([from, to]) => from === to);
    this.sees.textContent = this.sight.hidden
      ? "It depends on no pixel: it sees only padding."
      : `It depends on rows ${field[0][0]} to ${field[0][1] - 1} and columns ${field[1][0]} to ${field[1][1] - 1} of the picture, which are framed.`;
    this.#look();
    if (header.feeds.kind === "conv") this.#conv();
    else if (header.feeds.kind === "linear") this.#linear();
    else this.parts.replaceChildren(...(header.off ? [element("p", OFF, "small")] : []), ...this.#others());
  }

  /** Draws the picture with the frame around the receptive field. */
  #look() {
    const { width, height } = this.picture;
    const [canvas, frame] = this.sight.children;
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").drawImage(this.picture, 0, 0);
    place(frame, this.answer.header.field, height, width);
  }

  #input(label, send) {
    const field = element("input");
    field.type = "text";
    field.inputMode = "decimal";
    field.ariaLabel = label;
    field.addEventListener("change", () => {
      const wanted = Number(field.value.replace(",", ".").replace("−", "-"));
      if (field.value.trim() && Number.isFinite(wanted)) send(wanted);
      field.ariaInvalid = String(!field.value.trim() || !Number.isFinite(wanted));
    });
    return field;
  }

  #edit(parameter, index, value) {
    this.change("edit", { layer: this.answer.header.layer, parameter, index, value });
  }

  /** Returns in words what the products are together. */
  #total(products) {
    const { off, feeds } = this.answer.header;
    const that = off ? "that would be the value if it were on" : "that is the value";
    return `All ${products.length} products together are ${number(sum(products), 4)}; ${feeds.bias === null ? "" : "with the bias "}${that}.`;
  }

  #held() {
    return this.parts.contains(document.activeElement);
  }

  #conv() {
    const { header, arrays } = this.answer;
    const { window: seen, weight, products } = arrays;
    const [channels, h, w] = weight.shape;
    const part = (array) => array.data.subarray(k * h * w, (k + 1) * h * w);
    const sums = Array.from({ length: channels }, (_, i) => sum(products.data.subarray(i * h * w, (i + 1) * h * w)));
    const strongest = sums.reduce((best, one, i) => (Math.abs(one) > Math.abs(sums[best]) ? i : best), 0);
    const k = this.channel ?? (this.shown !== null && this.#held() ? this.shown : strongest);
    const { first, start, dilation, bias, size } = header.feeds;
    if (this.shown === null) {
      this.select = element("select");
      this.select.id = "channel";
      sums.forEach((_, i) => this.select.append(new Option("", i)));
      this.select.addEventListener("change", () => {
        this.channel = Number(this.select.value);
        this.#refresh();
      });
      const label = element("label", "Sum of the products of ");
      label.append(this.select);
      const send = (y, x) => (wanted) => this.#edit("weight", [this.answer.header.index[0], this.shown, y, x], wanted);
      this.grids = [grid("window", h, w), grid("× filter", h, w, (y, x) => this.#input(`weight in row ${y}, column ${x}`, send(y, x))), grid("= products", h, w)];
      const row = element("div", "", "sums");
      row.append(...this.grids.map(({ box }) => box));
      this.words = element("p", "", "small");
      this.parts.replaceChildren(label, row, this.words, ...this.#bias(bias));
    }
    this.shown = k;
    sums.forEach((one, i) => (this.select.options[i].text = `input channel ${first + i}: ${number(one)}`));
    this.select.value = k;
    const [left, middle, right] = this.grids.map(({ cells }) => cells);
    part(seen).forEach((value, i) => {
      fill(left[i], value, peak(seen.data));
      const at = [Math.floor(i / w), i % w].map((tap, axis) => start[axis] + tap * dilation[axis]);
      left[i].classList.toggle("out", at.some((one, axis) => one < 0 || one >= size[axis]));
    });
    part(weight).forEach((value, i) => write(middle[i].firstChild, value));
    part(products).forEach((value, i) => fill(right[i], value, peak(products.data)));
    this.words.textContent = this.#total(products.data);
    if (bias !== null) write(this.biasField, bias);
  }

  /** Returns the line of the bias, if there is one. */
  #bias(value) {
    if (value === null) return [];
    const label = element("label", "Bias ");
    this.biasField = this.#input("bias", (wanted) => this.#edit("bias", [this.answer.header.index[0]], wanted));
    label.append(this.biasField);
    return [label];
  }

  #linear() {
    const { header, arrays } = this.answer;
    const { window: seen, weight, products } = arrays;
    const { data } = products;
    if (this.shown === null || !this.#held()) {
      this.order = [...data.keys()].sort((a, b) => Math.abs(data[b]) - Math.abs(data[a])).slice(0, MOST);
    }
    if (this.shown === null) {
      this.shown = 0;
      const table = element("table");
      const head = element("tr");
      for (const text of ["input", "value", "× weight", "= product"]) head.append(element("th", text));
      table.append(head);
      this.cells = this.order.map((_, at) => {
        const row = element("tr");
        const cells = [element("th"), element("td"), element("td"), element("td")];
        cells[2].append(this.#input("", (wanted) => this.#edit("weight", [this.answer.header.index[0], this.order[at]], wanted)));
        row.append(...cells);
        table.append(row);
        return cells;
      });
      this.words = element("p", "", "small");
      this.parts.replaceChildren(element("p", "The inputs with the largest products:", "small"), table, this.words, ...this.#bias(header.feeds.bias));
    }
    this.order.forEach((i, at) => {
      const [name, value, field, product] = this.cells[at];
      name.textContent = i;
      fill(value, seen.data[i], peak(seen.data));
      field.firstChild.ariaLabel = `weight of input ${i}`;
      write(field.firstChild, weight.data[i]);
      fill(product, data[i], peak(data));
    });
    const rest = data.length - this.order.length;
    const others = sum(data) - sum(this.order.map((i) => data[i]));
    this.words.textContent = `${rest > 0 ? `The other ${rest} products are ${number(others, 4)} together. ` : ""}${this.#total(data)}`;
    if (header.feeds.bias !== null) write(this.biasField, header.feeds.bias);
  }

  #others() {
    const { header, arrays } = this.answer;
    const { feeds, value } = header;
    const say = (text) => [element("p", text, "small")];
    if (feeds.kind === "max" || feeds.kind === "mean") {
      const { data, shape } = arrays.window;
      if (data.length > 400) return say(`The ${feeds.kind === "max" ? "largest" : "mean"} of ${data.length} numbers of the map before.`);
      const best = feeds.kind === "max" ? data.indexOf(data.reduce((a, b) => (b > a || Number.isNaN(a) ? b : a))) : -1;
      const made = grid(feeds.kind === "max" ? "the largest of" : "the mean of", ...shape);
      made.cells.forEach((cell, i) => {
        fill(cell, data[i], peak(data));
        cell.classList.toggle("best", i === best);
      });
      return [made.box];
    }
    if (feeds.kind === "norm") {
      const [from] = feeds.inputs;
      return say(`(${number(from)} − mean ${number(feeds.mean)}) / deviation ${number(feeds.deviation)} × weight ${number(feeds.weight)} + bias ${number(feeds.bias)}${header.off ? "" : ` = ${number(value)}`}`);
    }
    if (feeds.kind === "same") {
      const relu = this.layers[header.layer].kind === "ReLU";
      const from = feeds.inputs.map((one) => number(one));
      return say(relu ? `The larger of 0 and ${from[0]}, the number at the same place of the layer before.` : `Computed from ${from.join(" and ")} at the same place of what comes in.`);
    }
    if (feeds.kind === "moved") {
      const [c, row, column] = feeds.source;
      const where = feeds.source.length === 3 ? `in channel ${c}, row ${row}, column ${column}` : `at place ${feeds.source.join(", ")}`;
      return say(`The same number as ${where} of the layer before.`);
    }
    return say("Computed from more numbers than fit here, or by a layer that this page does not know.");
  }
}

/** Places a frame around rows and columns of a picture. */
export function place(frame, [[top, bottom], [left, right]], height, width) {
  const box = { top: top / height, height: (bottom - top) / height, left: left / width, width: (right - left) / width };
  for (const [side, share] of Object.entries(box)) frame.style[side] = `${share * 100}%`;
}

function shapeWord({ shape }) {
  return shape.length === 3 ? "Switch this channel off" : "Switch this number off";
}

function fill(cell, value, scale) {
  cell.textContent = Number.isFinite(value) ? plain(value, 2).replace("-", "−") : "";
  cell.style.borderBottom = `3px solid ${color(value, scale)}`;
  cell.classList.toggle("out", !Number.isFinite(value));
}

/** Writes a number into a field unless someone is typing in it. */
function write(field, value) {
  if (field === document.activeElement) return;
  field.value = plain(value, 3);
  field.ariaInvalid = "false";
}

/** Returns a table with a title, and its cells, for which field(y, x) makes the content if it is given. */
function grid(title, h, w, field = null) {
  const box = element("div");
  const table = element("table");
  table.append(element("caption", title, "small"));
  const cells = [];
  for (let y = 0; y < h; y++) {
    const row = element("tr");
    for (let x = 0; x < w; x++) {
      const cell = element("td");
      if (field) cell.append(field(y, x));
      row.append(cell);
      cells.push(cell);
    }
    table.append(row);
  }
  box.append(table);
  return { box, cells };
}
