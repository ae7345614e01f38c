// Puts the page together: what is asked for, what an answer changes, and the controls.

import { Layers, element, paintImage, paintOver, themeChanged } from "./maps.js";
import { Neuron, place } from "./neuron.js";
import { Pad } from "./pad.js";
import { Server, about } from "./server.js";

const FEW = 20; // classes that are all listed
const TOP = 10; // of more, the most probable

const get = (id) => document.getElementById(id);
const ABOUT_STEPS = get("losses").textContent;
const network = await about().catch((error) => {
  failed(`The network cannot be shown: ${error.message}.`);
  throw error;
});
const state = { target: null, why: "gradient", neuron: null, last: null, order: [] };

get("title").textContent = `${network.title} on ${network.dataset || "its images"}`;
const layers = new Layers(get("rows"), network.layers, choose, () => server.look(), () => get("close").focus());
const server = new Server(view, shown, found, failed);
const neuron = new Neuron(get("neuron"), network.layers, get("input").firstChild, (name, body) => server.change(name, body));
const pad = new Pad(get("pad"), network.side, network.light, (ink, since) => server.draw(ink, since), (text) => (get("said").textContent = text));

function view() {
  const query = new URLSearchParams({ layers: layers.query() });
  if (state.target !== null) query.set("target", state.target);
  query.set("why", state.why);
  return `?${query}`;
}

function failed(sentence) {
  get("error").textContent = sentence;
  get("error").hidden = false;
}

/** Shows an answer: the picture, the scores, the maps. */
function shown({ header, arrays }, name) {
  if (name !== "look") get("error").hidden = true;
  if (name === "example" && header.truth !== null) get("label").value = header.truth;
  state.last = { header, arrays };
  const of = Object.fromEntries(arrays.filter((one) => one.layer === undefined).map((one) => [one.kind, one]));
  paintImage(get("input").firstChild, of.x.data, of.x.shape);
  const truth = header.truth === null ? "" : ` (${network.classes[header.truth]})`;
  get("name").textContent = header.name + truth;
  get("input").firstChild.ariaLabel = `the input of the network, ${of.x.shape.join(" by ")}: ${header.name}${truth}`;
  explain(of, header);
  classes(of.probabilities.data, of.scores.data);
  layers.draw(arrays, header.off);
  changes(header);
  if (state.neuron) server.neuron(...state.neuron);
}

/** Draws what explains the class over the picture: the gradient at the pixels, or a map. */
function explain({ dx, why }, { target, unexplained }) {
  const over = get("over");
  over.hidden = !dx && !why;
  if (target === state.target && target !== null) get("why-text").textContent = unexplained || `${network.classes[target]}: ${TEXT[state.why]}`;
  if (over.hidden) return;
  const [h, w] = network.shape.slice(1);
  let { data } = dx ?? why;
  if (dx && network.shape[0] === 3) {
    data = data.slice(0, h * w).map((_, i) => data[i] + data[h * w + i] + data[2 * h * w + i]);
  }
  paintOver(over, data, h, w);
  over.ariaLabel = `${dx ? "gradient" : state.why.replace("_", "-")} of ${network.classes[target]} over the picture`;
}

const TEXT = {
  gradient: "Red: the score rises if the pixel gets lighter. Blue: it falls. The layers show the gradients on the way back.",
  grad_cam: "Red: where the maps of the last convolution speak for the class. It is coarse. Channels that are switched off count as on here.",
  occlusion: "Red: where covering the picture takes away score; blue: where that adds some. Channels that are switched off count as on here.",
};

let quiet = 0;

function classes(probabilities, scores) {
  const all = [...network.classes.keys()];
  if (all.length > FEW) {
    all.sort((a, b) => probabilities[b] - probabilities[a]);
    if (state.target !== null && all.indexOf(state.target) >= TOP) all[TOP - 1] = state.target; // it stays in the list
    all.length = TOP;
  }
  state.order = all;
  const list = get("classes");
  while (list.children.length < all.length) list.append(classButton(list.children.length));
  all.forEach((k, place) => {
    const button = list.children[place].firstChild;
    const [name, bar, share] = button.children;
    name.textContent = network.classes[k];
    bar.firstChild.style.width = `${probabilities[k] * 100 || 0}%`;
    share.textContent = percent(probabilities[k]);
    button.title = `${network.classes[k]}, score ${scores[k].toFixed(3)}`;
    button.ariaPressed = String(k === state.target);
  });
  const best = probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
  let said = best < 0 ? "The scores are not finite." : `${network.classes[best]}, ${percent(probabilities[best])}`;
  if (state.last.header.name === "nothing drawn yet") said = "Draw something.";
  clearTimeout(quiet); // screen readers hear the result, not every movement
  quiet = setTimeout(() => {
    if (get("said").textContent !== said) get("said").textContent = said;
  }, 150);
}

function percent(share) {
  return Number.isFinite(share) ? `${(share * 100).toFixed(1)} %` : "–";
}

/** Makes the button at a place of the list; which class it is for may change. */
function classButton(place) {
  const item = element("li");
  const button = element("button");
  button.type = "button";
  const bar = element("span", "", "bar");
  bar.append(element("span"));
  button.append(element("span", "", "name"), bar, element("span", "", "share"));
  button.addEventListener("click", () => target(state.order[place] === state.target ? null : state.order[place]));
  item.append(button);
  return item;
}

/** Explains the score of a class, or none. */
function target(k) {
  state.target = k;
  const gradients = k !== null && state.why === "gradient";
  const choice = document.querySelector("[name=show][value=dy]");
  choice.disabled = !gradients;
  document.querySelector(`[name=show][value=${gradients ? "dy" : "y"}]`).checked = true;
  layers.mode = gradients ? "dy" : "y";
  if (k === null) get("why-text").textContent = "";
  if (gradients) layers.flow();
  server.look();
}

function changes({ off, edited, losses, label }) {
  const count = Object.values(off).flat().length;
  const parts = [edited && "weights are changed", count && `${count} ${count === 1 ? "channel is" : "channels are"} off`].filter(Boolean);
  get("changes").textContent = parts.length ? `Not the trained network: ${parts.join(", ")}.` : "";
  if (!parts.length && document.activeElement === get("reset")) get("pad").focus(); // it cannot keep the focus
  get("reset").disabled = !parts.length;
  const said = losses.length ? lossWords(losses, network.classes[label]) : [ABOUT_STEPS];
  const text = said.map((part) => part.textContent ?? part).join("");
  if (get("losses").textContent !== text) get("losses").replaceChildren(...said);
}

/** Says what the last step did to the loss, and what all have done. */
function lossWords(losses, name) {
  const [before, after] = losses.slice(-2);
  const what = after < before ? `${percent((before - after) / before)} lower` : after > before ? "higher: the step was too large" : "as before: there is nothing left to learn here, so try another label";
  const all = losses.length > 2 ? ` All steps: ${losses.slice(-8).map(short).join(" → ")}.` : "";
  return [element("strong", `Loss ${short(before)} → ${short(after)}`), ` for this picture as ${name}: ${what}.${all}`];
}

function short(loss) {
  return loss >= 0.001 || loss === 0 ? String(Number(loss.toPrecision(3))) : loss.toExponential(1);
}

/** Chooses a neuron; screen readers hear of those that keys have chosen. */
function choose(layer, index, byKey) {
  state.neuron = [layer, index];
  neuron.spoken = byKey;
  server.neuron(layer, index);
}

function found(answer) {
  if (!state.neuron) return;
  get("neuron").hidden = false;
  document.body.classList.add("sheet");
  neuron.show(answer, gradient(answer.header));
  const { field } = answer.header;
  get("field").hidden = field.some(([from, to]) => from === to);
  place(get("field"), field, ...network.shape.slice(1));
}

/** Returns the gradient of the chosen class at a neuron, if it is among the arrays of the page. */
function gradient({ layer, index, version }) {
  const maps = state.last?.arrays.find((array) => array.kind === "dy" && array.layer === layer);
  if (!maps || state.last.header.version !== version) return null;
  const place = index.reduce((at, i, axis) => at * (axis ? maps.shape[axis] : 1) + i, 0);
  return maps.data[place] ?? null;
}

function close() {
  state.neuron = null;
  if (get("neuron").contains(document.activeElement)) layers.back();
  layers.release();
  document.body.classList.remove("sheet");
  get("neuron").hidden = get("field").hidden = true;
}

get("close").addEventListener("click", close);
get("neuron").addEventListener("keydown", (event) => event.key === "Escape" && layers.back());
get("clear").addEventListener("click", () => pad.clear());
get("reset").addEventListener("click", () => server.change("reset", {}));

for (const input of document.querySelectorAll("[name=why]")) {
  input.addEventListener("change", () => {
    state.why = input.value;
    target(state.target);
  });
}
for (const input of document.querySelectorAll("[name=show]")) {
  input.addEventListener("change", () => {
    layers.mode = input.value;
    if (state.last) layers.draw(state.last.arrays, state.last.header.off);
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  themeChanged();
  server.look();
});

// Pictures from elsewhere.

function example(index) {
  pad.wipe();
  server.change("example", { index });
}

function photo(file) {
  if (file.size > network.most) return failed(`The photo has more than ${network.most >> 20} MiB.`);
  pad.wipe();
  server.change("photo", file);
}

if (network.test) {
  get("random").addEventListener("click", () => example(null));
  get("index").max = network.test - 1;
  get("index").addEventListener("change", () => {
    const { validity, valueAsNumber, max } = get("index");
    if (validity.valid && !Number.isNaN(valueAsNumber)) example(valueAsNumber);
    else failed(`The test images have the numbers 0 to ${max}.`);
  });
} else get("random").hidden = get("index-label").hidden = true;
get("photo").addEventListener("change", ({ target: input }) => {
  if (input.files.length) photo(input.files[0]);
  input.value = ""; // so that the same file can be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("drop");
});
addEventListener("dragleave", () => document.body.classList.remove("drop"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  if (event.dataTransfer.files.length) photo(event.dataTransfer.files[0]);
});

let stream = null;
get("camera").hidden = !navigator.mediaDevices?.getUserMedia;
get("camera").addEventListener("click", async () => {
  if (stream) return stop();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, facingMode: "environment" } });
  } catch (error) {
    failed(`The camera cannot be used: ${error.message}.`);
    return;
  }
  get("video").srcObject = stream;
  get("viewfinder").hidden = false;
  await get("video").play();
  get("snap").focus();
});
get("snap").addEventListener("click", () => {
  const video = get("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(photo, "image/jpeg", 0.95);
  stop();
});

function stop() {
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  get("viewfinder").hidden = true;
}

// A step of training.

network.classes.forEach((name, k) => get("label").append(new Option(name, k)));
get("rate").value = network.rate.usual;
get("step").addEventListener("submit", (event) => {
  event.preventDefault();
  const lr = Number(get("rate").value.replace(",", "."));
  if (!(lr > 0 && lr <= network.rate.most)) return failed(`The learning rate must be above 0 and at most ${network.rate.most}.`);
  server.change("step", { label: Number(get("label").value), lr });
});

server.look();
