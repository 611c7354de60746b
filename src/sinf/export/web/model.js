// The exported classifier beside its base model, both in onnxruntime-web on one thread.

import { fit, normalise } from "./preprocess.js";

export class Model {
  /** Load what `sinf export --format web` wrote; `progress(done, total)` tells bytes. */
  static async load(progress = () => {}) {
    const manifest = await (await get("manifest.json")).json();
    const ort = await import("./runtime/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
    const done = { bundle: 0, base: 0 };
    const total = manifest.bytes.bundle + manifest.bytes.base;
    const open = async (which, file) => {
      const bytes = await download(file, (count) => {
        done[which] = count;
        progress(done.bundle + done.base, total);
      });
      return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    };
    return new Model(ort, manifest, await open("bundle", "model.onnx"), await open("base", "base.onnx"));
  }

  constructor(ort, manifest, bundle, base) {
    Object.assign(this, { ort, manifest, bundle, base, clusters: manifest.clusters.map(({ name }) => name) });
  }

  /** RGBA pixels to {pixels, x}: bytes (H, W, C) of the model's size, and the normalised tensor (1, C, H, W). */
  prepare(image) {
    const { preprocessing } = this.manifest;
    const pixels = fit(image, preprocessing);
    return { pixels, x: new this.ort.Tensor("float32", normalise(pixels, preprocessing), [1, ...preprocessing.size]) };
  }

  /** What the bundle says: logits, and the way that the image took. */
  async route(x) {
    const out = await this.bundle.run({ images: x });
    return {
      logits: Array.from(out.logits.data),
      route: Number(out.route.data[0]),
      confidence: out.confidence.data[0],
      subgraphRan: Boolean(out.subgraph_ran.data[0]),
      fellBack: Boolean(out.fell_back.data[0]),
    };
  }

  async baseLogits(x) {
    return Array.from((await this.base.run({ images: x })).logits.data);
  }

  /** Milliseconds of both on one image: medians of pairs in turns, after two that are not counted. */
  async time(x, pairs = 15) {
    const times = { base: [], bundle: [] };
    for (let pair = -2; pair < pairs; pair++) {
      for (const which of pair % 2 ? ["bundle", "base"] : ["base", "bundle"]) {
        const start = performance.now();
        await this[which].run({ images: x });
        if (pair >= 0) times[which].push(performance.now() - start);
      }
      await new Promise((resume) => setTimeout(resume)); // the page stays alive
    }
    return { base: median(times.base), bundle: median(times.bundle), pairs };
  }
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

async function get(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`${file} cannot be loaded (${response.status})`);
  return response;
}

async function download(file, progress) {
  const chunks = [];
  let length = 0;
  for (const reader = (await get(file)).body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    length += value.length;
    progress(length);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}
