// An image as the model wants it, to the bit as sinf's Preprocessing does it in Python with Pillow: resized (bilinear
// or bicubic, the filter as wide as the scale, 8 bits between the two passes), the centre cropped, normalised.

const BITS = 22; // of a weight in Pillow's fixed point
const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, at: (x) => cubic(Math.abs(x), -0.5) },
};

/** A file or blob as {data (RGBA bytes), width, height}, upright where a camera noted how it was held, on white. */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // under what is transparent, as in Python
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** RGBA of any size to bytes (H, W, C) of the model's size [C, H, W]; alpha is not read: decode lays images on white. */
export function fit(image, { size: [channels, height, width], resize: to = null, interpolation = "bilinear" }) {
  let pixels = planes(image, channels);
  const { width: w, height: h } = image;
  if (to === null && w === width && h === height) return pixels;
  const [across, down] = resized(w, h, width, height, to);
  const filter = FILTERS[interpolation];
  const alongRows = (lines) => across === w || (pixels = resize(pixels, lines, w, across, channels, false, filter));
  const alongColumns = (lines) => down === h || (pixels = resize(pixels, lines, h, down, channels, true, filter));
  if (down < h && h > w && w * down < across * h) {
    alongColumns(w); // first, as Pillow 13 does where an image is tall and shrinks more that way
    alongRows(down);
  } else {
    alongRows(h);
    alongColumns(across);
  }
  const start = (margin) => (to === null ? margin >> 1 : roundHalfEven(margin / 2));
  return crop(pixels, across, start(across - width), start(down - height), width, height, channels);
}

/** Width and height before the centre is taken; `to` is the shorter side, [height, width], or null: as is needed. */
function resized(w, h, width, height, to) {
  if (to === null) {
    const scale = Math.max(width / w, height / h);
    return [Math.max(width, roundHalfEven(w * scale)), Math.max(height, roundHalfEven(h * scale))];
  }
  if (typeof to !== "number") return [to[1], to[0]];
  const short = Math.min(w, h);
  return [Math.trunc((to * w) / short), Math.trunc((to * h) / short)];
}

function cubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Bytes (H, W, C) to float32 (C, H, W), every step rounded as float32 arithmetic does. */
export function normalise(pixels, { size, mean, std }) {
  const [channels, height, width] = size;
  const area = height * width;
  const out = new Float32Array(channels * area);
  for (let c = 0; c < channels; c++) {
    const shift = Math.fround(Math.fround(mean[c]) * 255);
    const scale = Math.fround(Math.fround(std[c]) * 255);
    for (let i = 0; i < area; i++) out[c * area + i] = Math.fround(pixels[i * channels + c] - shift) / scale;
  }
  return out;
}

function planes({ data }, channels) {
  const count = data.length / 4;
  const out = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) out[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else out.set([r, g, b], 3 * i);
  }
  return out;
}

function roundHalfEven(value) {
  const low = Math.floor(value);
  const over = value - low;
  return over > 0.5 || (over === 0.5 && low % 2 === 1) ? low + 1 : low;
}

/** One pass: `lines` lines of `from` pixels become `to` pixels, along rows or (`down`) along columns. */
function resize(pixels, lines, from, to, channels, down, filter) {
  const out = new Uint8Array(lines * to * channels);
  const [step, next] = down ? [lines * channels, channels] : [channels, from * channels];
  const [outStep, outNext] = down ? [lines * channels, channels] : [channels, to * channels];
  weights(from, to, filter).forEach(({ first, kernel }, position) => {
    for (let line = 0; line < lines; line++) {
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        for (let k = 0; k < kernel.length; k++) sum += pixels[line * next + (first + k) * step + c] * kernel[k];
        out[line * outNext + position * outStep + c] = Math.min(255, Math.max(0, sum >> BITS));
      }
    }
  });
  return out;
}

/** For every output pixel the first input pixel that it reads, and the weights in fixed point. */
function weights(from, to, filter) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length: to }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const kernel = [];
    for (let i = first; i < last; i++) {
      kernel.push(filter.at((i - centre + 0.5) * (1 / stretch)));
    }
    const total = kernel.reduce((a, b) => a + b, 0);
    return { first, kernel: kernel.map((w) => fixed(w / total)) };
  });
}

function fixed(weight) {
  return Math.trunc(Math.sign(weight) * 0.5 + weight * (1 << BITS));
}

function crop(pixels, w, left, top, width, height, channels) {
  const out = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * w + left) * channels;
    out.set(pixels.subarray(start, start + width * channels), y * width * channels);
  }
  return out;
}
