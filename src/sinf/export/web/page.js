// What the page shows. All arithmetic is in model.js and preprocess.js.

import { Model, softmax } from "./model.js";
import { decode } from "./preprocess.js";

const $ = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;
const readable = (name) => name.replaceAll("_", " ");
const TOP = 5;

let model;
let queue = Promise.resolve(); // one image after the other: two at once would time each other

start();

async function start() {
  try {
    model = await Model.load((done, total) => say(`Loading the models: ${percent(done / total)} of ${megabytes(total)}`));
  } catch (error) {
    return fail(`The page cannot start: ${error.message}`);
  }
  const { manifest } = model;
  $("model").textContent =
    `${manifest.model}: ${manifest.classes.length} classes in ${model.clusters.length} semantic clusters. Early features ` +
    "tell the cluster, and a small subgraph of the network answers; an unsure image goes through the full tail.";
  $("about").textContent =
    `onnxruntime-web, one thread. The bundle is one ONNX file of ${megabytes(manifest.bytes.bundle)}, the base model one of ` +
    `${megabytes(manifest.bytes.base)}. Times are medians of runs in turns in this browser.`;
  $("clusters").replaceChildren(...model.clusters.map((name) => element("li", { textContent: readable(name) })));
  $("gallery").replaceChildren(...manifest.gallery.map(sample));
  $("sweep").hidden = !manifest.gallery.length;
  $("all").onclick = () => enqueue(sweep);
  listen();
  $("main").hidden = false;
  say("");
  if (manifest.gallery.length) $("gallery").querySelector("button").click();
  else say("Ready for an image.");
}

function listen() {
  $("file").onchange = () => $("file").files[0] && show($("file").files[0]);
  addEventListener("paste", (event) => event.clipboardData.files[0] && show(event.clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", () => $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
}

function sample({ file, label }) {
  const button = element("button", { type: "button", title: label, ariaPressed: "false" });
  button.append(element("img", { src: file, alt: label }));
  button.onclick = async () => show(await (await fetch(file)).blob(), label, button);
  const item = element("li");
  item.append(button);
  return item;
}

/** Classify and time one image; `name` is what it is known as. */
function show(blob, name = blob.name ?? "pasted image", pressed = null) {
  return enqueue(async () => {
    for (const button of $("gallery").querySelectorAll("button")) button.ariaPressed = String(button === pressed);
    let image;
    try {
      image = await decode(blob);
    } catch {
      return fail(`${name} cannot be read as an image. PNG, JPEG, WebP and GIF can.`);
    }
    say("");
    $("result").classList.add("busy");
    const { pixels, x } = model.prepare(image);
    paint(pixels);
    $("caption").textContent = name;
    const [bundle, base] = [await model.route(x), await model.baseLogits(x)];
    answer(bundle, base);
    way(bundle);
    times(await model.time(x));
    $("result").classList.remove("busy");
  });
}

function answer({ logits }, baseLogits) {
  const { classes } = model.manifest;
  const [bundle, base] = [softmax(logits), softmax(baseLogits)];
  const best = bundle.map((_, index) => index).sort((a, b) => bundle[b] - bundle[a]);
  $("classes").replaceChildren(
    ...best.slice(0, TOP).map((index) => {
      const row = element("li");
      const bar = element("i");
      bar.style.width = `${100 * bundle[index]}%`;
      row.append(element("span", { textContent: readable(classes[index]), title: classes[index] }), bar);
      row.append(element("output", { textContent: percent(bundle[index]) }));
      return row;
    }),
  );
  const theirs = base.indexOf(Math.max(...base));
  $("agree").textContent =
    theirs === best[0]
      ? `The base model says so too (${percent(base[theirs])}).`
      : `The base model says ${readable(classes[theirs])} (${percent(base[theirs])}).`;
}

function way({ route, confidence, subgraphRan, fellBack }) {
  const cluster = readable(model.clusters[route]);
  const threshold = model.manifest.thresholds.value;
  const needed = threshold > 1 ? "every image falls back" : `${percent(threshold)} is needed`;
  const shown = { front: true, router: true, subgraph: subgraphRan, full_tail: fellBack };
  for (const part of $("way").children) {
    part.className = shown[part.dataset.part] ? "on" : "off";
  }
  $("route").textContent = `says: ${cluster}`;
  $("subgraph").textContent = subgraphRan ? `of ${cluster}` : "not run: the route is unlikely";
  $("full_tail").textContent = fellBack
    ? `confidence ${percent(confidence)}, ${needed}`
    : `not needed: confidence ${percent(confidence)}, ${needed}`;
  [...$("clusters").children].forEach((item, index) => (item.ariaCurrent = String(index === route)));
}

function times({ base, bundle, pairs }) {
  const longest = Math.max(base, bundle);
  $("base-bar").style.width = `${(100 * base) / longest}%`;
  $("bundle-bar").style.width = `${(100 * bundle) / longest}%`;
  $("base-time").textContent = `${base.toFixed(2)} ms`;
  $("bundle-time").textContent = `${bundle.toFixed(2)} ms`;
  $("saved").textContent = `${saved(base, bundle)} (medians of ${pairs} runs in turns)`;
}

function saved(base, bundle) {
  const share = 1 - bundle / base;
  return share >= 0 ? `${percent(share)} of the time saved` : `${percent(-share)} slower`;
}

/** All images of the gallery, fewer runs each: what routing saves is a mean over images. */
async function sweep() {
  $("all").disabled = true;
  const total = { base: 0, bundle: 0, subgraph: 0, same: 0 };
  const { gallery } = model.manifest;
  for (const [index, { file }] of gallery.entries()) {
    $("sum").textContent = `${index + 1} of ${gallery.length} ...`;
    const { x } = model.prepare(await decode(await (await fetch(file)).blob()));
    const [bundle, base] = [await model.route(x), await model.baseLogits(x)];
    const time = await model.time(x, 5);
    total.base += time.base;
    total.bundle += time.bundle;
    total.subgraph += !bundle.fellBack;
    total.same += top(bundle.logits) === top(base);
  }
  const mean = (value) => `${(value / gallery.length).toFixed(2)} ms`;
  $("sum").textContent =
    `${gallery.length} images: base model ${mean(total.base)}, bundle ${mean(total.bundle)} a piece, ` +
    `${saved(total.base, total.bundle)}. ${total.subgraph} were answered by a subgraph, ${total.same} as the base model does.`;
  $("all").disabled = false;
}

const top = (logits) => logits.indexOf(Math.max(...logits));

function paint(pixels) {
  const [channels, height, width] = model.manifest.preprocessing.size;
  const data = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = pixels[i * channels + (channels === 1 ? 0 : c)];
    data.data[4 * i + 3] = 255;
  }
  Object.assign($("image"), { width, height });
  $("image").getContext("2d").putImageData(data, 0, 0);
}

function enqueue(job) {
  queue = queue.then(job).catch((error) => fail(`That went wrong: ${error.message}`));
  return queue;
}

function say(text) {
  $("status").className = "";
  $("status").textContent = text;
  $("status").hidden = !text;
}

function fail(text) {
  say(text);
  $("status").className = "error";
  $("result").classList.remove("busy");
  $("all").disabled = false;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}
