// The panel of a neuron: its value, what feeds it, number by number, and the weights, which can be changed.

import { color, element } from "./maps.js";

const MOST = 12; // rows of the table of a linear layer

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
    const typing = this.body.contains(document.activeElement) && document.activeElement.matches("input, select");
    if (typing && key === this.key) return this.#refresh();
    this.key = key;
    this.#build();
  }

  #head() {
    const { header } = this.answer;
    const { name, kind, shape } = this.layers[header.layer];
    const [c, row, column] = header.index;
    const where = shape.length === 3 ? `channel ${c}, row ${row}, column ${column}` : `number ${c}`;
    return `${name} ${kind}, ${where}`;
  }

  #build() {
    const { header } = this.answer;
    const { feeds, field } = header;
    this.value = element("p", "", "value");
    this.value.ariaLive = this.spoken ? "polite" : "off";
    const off = element("button", shapeWord(this.layers[header.layer]));
    off.type = "button";
    off.id = "off";
    off.ariaPressed = String(header.off);
    off.addEventListener("click", () => {
      this.change("switch", { layer: header.layer, channel: header.index[0], off: !this.answer.header.off });
    });
    const sees = element("p", "", "small");
    const empty = field.some(([from, to]) => from === to);
    sees.textContent = !empty
      ? `It depends on rows ${field[0][0]} to ${field[0][1] - 1} and columns ${field[1][0]} to ${field[1][1] - 1} of the picture, which are framed.`
      : "It depends on no pixel: it sees only padding.";
    this.parts = element("div");
    const top = element("div", "", "row top");
    top.append(this.value, off);
    this.sight = element("div", "", "sight"); // the picture again, as it may be out of view
    this.sight.append(document.createElement("canvas"), element("span", "", "cell"));
    this.sight.ariaHidden = "true";
    this.sight.hidden = empty;
    this.body.replaceChildren(this.sight, element("p", this.#head()), top, sees, this.parts);
    this.#refresh(true);
  }

  /** Writes the numbers; the fields for weights are made anew unless someone is typing in them. */
  #refresh(anew = false) {
    const { header } = this.answer;
    const slope = this.gradient === null ? "" : `, gradient ${number(this.gradient)}`;
    this.value.textContent = `${number(header.value, 4)}${header.off ? " (switched off)" : ""}${slope}`;
    this.#look();
    const off = this.body.querySelector("#off");
    off.ariaPressed = String(header.off);
    if (header.feeds.kind === "conv") this.#conv(anew);
    else if (header.feeds.kind === "linear") this.#linear(anew);
    else this.parts.replaceChildren(...this.#others());
  }

  /** Draws the picture with the frame around the receptive field. */
  #look() {
    const { width, height } = this.picture;
    const [canvas, frame] = this.sight.children;
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").drawImage(this.picture, 0, 0);
    place(frame, this.answer.header.field, height, width);
  }

  #input(label, value, send) {
    const field = element("input");
    field.type = "text";
    field.inputMode = "decimal";
    field.value = plain(value, 3);
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

  #conv(anew) {
    const { header, arrays } = this.answer;
    const { window: seen, weight, products } = arrays;
    const [channels, h, w] = weight.shape;
    const part = (array, k) => array.data.subarray(k * h * w, (k + 1) * h * w);
    const sums = Array.from({ length: channels }, (_, k) => sum(part(products, k)));
    const strongest = sums.reduce((best, one, k) => (Math.abs(one) > Math.abs(sums[best]) ? k : best), 0);
    const k = this.channel !== null && this.channel < channels ? this.channel : strongest;
    const { first, start, dilation } = header.feeds;
    const total = sum(sums);
    const words = `All ${products.data.length} products together are ${number(total, 4)}${this.#rest()}`;
    const outside = (y, x) =>
      [y, x].some((tap, axis) => {
        const at = start[axis] + tap * dilation[axis];
        return at < 0 || at >= header.feeds.size[axis];
      });
    if (!anew && this.shownChannel === k) {
      this.cells.seen.forEach((cell, i) => fill(cell, part(seen, k)[i], peak(seen.data)));
      this.cells.products.forEach((cell, i) => fill(cell, part(products, k)[i], peak(products.data)));
      this.words.textContent = words;
      return;
    }
    this.shownChannel = k;
    const select = element("select");
    select.id = "channel";
    sums.forEach((one, i) => select.append(new Option(`input channel ${first + i}: ${number(one)}`, i, i === k, i === k)));
    select.addEventListener("change", () => {
      this.channel = Number(select.value);
      this.#refresh(true);
      this.body.querySelector("#channel").focus();
    });
    const label = element("label", "Sum of the products of ");
    label.append(select);
    const grids = element("div", "", "sums");
    const left = grid("window", h, w, part(seen, k), peak(seen.data), outside);
    const right = grid("= products", h, w, part(products, k), peak(products.data));
    const middle = grid("× filter", h, w, part(weight, k), peak(weight.data), null, (value, y, x) =>
      this.#input(`weight in row ${y}, column ${x}`, value, (wanted) => this.#edit("weight", [header.index[0], k, y, x], wanted)),
    );
    this.cells = { seen: left.cells, products: right.cells };
    grids.append(left.box, middle.box, right.box);
    this.words = element("p", words, "small");
    this.parts.replaceChildren(label, grids, this.words, ...this.#bias());
  }

  /** Says how the value comes from the sum of the products. */
  #rest() {
    return this.answer.header.feeds.biased ? "; with the bias that is the value." : ", which is the value: the layer has no bias.";
  }

  #bias() {
    const { bias, biased } = this.answer.header.feeds;
    if (!biased) return [];
    const label = element("label", "Bias ");
    label.append(this.#input("bias", bias, (wanted) => this.#edit("bias", [this.answer.header.index[0]], wanted)));
    const box = element("p");
    box.append(label);
    return [box];
  }

  #linear(anew) {
    const { header, arrays } = this.answer;
    const { window: seen, weight, products } = arrays;
    if (anew) {
      this.order = [...products.data.keys()].sort((a, b) => Math.abs(products.data[b]) - Math.abs(products.data[a])).slice(0, MOST);
      const table = element("table");
      const head = element("tr");
      for (const text of ["input", "value", "× weight", "= product"]) head.append(element("th", text));
      table.append(head);
      this.cells = this.order.map((i) => {
        const row = element("tr");
        const cells = [element("td"), element("td")];
        const field = element("td");
        field.append(this.#input(`weight of input ${i}`, weight.data[i], (wanted) => this.#edit("weight", [header.index[0], i], wanted)));
        row.append(element("th", String(i)), cells[0], field, cells[1]);
        table.append(row);
        return cells;
      });
      this.words = element("p", "", "small");
      this.parts.replaceChildren(element("p", "The inputs with the largest products:", "small"), table, this.words, ...this.#bias());
    }
    const scale = peak(products.data);
    this.order.forEach((i, at) => {
      fill(this.cells[at][0], seen.data[i], peak(seen.data));
      fill(this.cells[at][1], products.data[i], scale);
    });
    const here = sum(this.order.map((i) => products.data[i]));
    const all = sum(products.data);
    const rest = products.data.length - this.order.length;
    this.words.textContent = `${rest > 0 ? `The other ${rest} products are ${number(all - here, 4)} together. ` : ""}All together are ${number(all, 4)}${this.#rest()}`;
  }

  #others() {
    const { header, arrays } = this.answer;
    const { feeds, value } = header;
    const say = (text) => [element("p", text, "small")];
    if (feeds.kind === "max" || feeds.kind === "mean") {
      const { data, shape } = arrays.window;
      if (data.length > 400) return say(`The ${feeds.kind === "max" ? "largest" : "mean"} of ${data.length} numbers of the map before.`);
      const best = feeds.kind === "max" ? data.indexOf(data.reduce((a, b) => (b > a || Number.isNaN(a) ? b : a))) : -1;
      const made = grid(feeds.kind === "max" ? "the largest of" : "the mean of", ...shape, data, peak(data));
      made.cells.forEach((cell, i) => cell.classList.toggle("best", i === best));
      return [made.box];
    }
    if (feeds.kind === "norm") {
      const [from] = feeds.inputs;
      return say(`(${number(from)} − mean ${number(feeds.mean)}) / deviation ${number(feeds.deviation)} × weight ${number(feeds.weight)} + bias ${number(feeds.bias)} = ${number(value)}`);
    }
    if (feeds.kind === "same") {
      const relu = this.layers[header.layer].kind === "ReLU";
      const from = feeds.inputs.map((one) => number(one));
      return say(relu ? `The larger of 0 and ${from[0]}, the number at the same place of the layer before.` : `Computed from ${from.join(" and ")} at the same place of what comes in.`);
    }
    if (feeds.kind === "moved") {
      return say(`The same number as channel ${feeds.source.join(", row ").replace(/, row (\d+)$/, ", column $1")} of the layer before.`);
    }
    return say("Computed from more numbers than fit here.");
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

/** Returns a table of numbers with a title, and its cells. */
function grid(title, h, w, numbers, scale, outside = null, field = null) {
  const box = element("div");
  const table = element("table");
  table.append(element("caption", title, "small"));
  const cells = [];
  for (let y = 0; y < h; y++) {
    const row = element("tr");
    for (let x = 0; x < w; x++) {
      const cell = element("td");
      if (field) cell.append(field(numbers[y * w + x], y, x));
      else fill(cell, numbers[y * w + x], scale);
      if (outside?.(y, x)) cell.classList.add("out");
      row.append(cell);
      cells.push(cell);
    }
    table.append(row);
  }
  box.append(table);
  return { box, cells };
}
