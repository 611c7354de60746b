// An image as the model wants it, to the bit as sinf's Preprocessing does it in Python with Pillow: the shorter side
// resized (bilinear, the filter as wide as the scale, 8 bits between the two passes), the centre cropped, normalised.

const BITS = 22; // of a weight in Pillow's fixed point

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
export function fit(image, [channels, height, width]) {
  let pixels = planes(image, channels);
  const { width: w, height: h } = image;
  if (w !== width || h !== height) {
    const scale = Math.max(width / w, height / h);
    const [across, down] = [Math.max(width, roundHalfEven(w * scale)), Math.max(height, roundHalfEven(h * scale))];
    if (across !== w) pixels = resize(pixels, h, w, across, channels, false);
    if (down !== h) pixels = resize(pixels, across, h, down, channels, true);
    pixels = crop(pixels, across, down, width, height, channels);
  }
  return pixels;
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
function resize(pixels, lines, from, to, channels, down) {
  const out = new Uint8Array(lines * to * channels);
  const [step, next] = down ? [lines * channels, channels] : [channels, from * channels];
  const [outStep, outNext] = down ? [lines * channels, channels] : [channels, to * channels];
  weights(from, to).forEach(({ first, kernel }, position) => {
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
function weights(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const kernel = [];
    for (let i = first; i < last; i++) {
      kernel.push(Math.max(0, 1 - Math.abs((i - centre + 0.5) * (1 / support))));
    }
    const total = kernel.reduce((a, b) => a + b, 0);
    return { first, kernel: kernel.map((w) => Math.trunc(0.5 + (w / total) * (1 << BITS))) };
  });
}

function crop(pixels, w, h, width, height, channels) {
  const [left, top] = [(w - width) >> 1, (h - height) >> 1];
  const out = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * w + left) * channels;
    out.set(pixels.subarray(start, start + width * channels), y * width * channels);
  }
  return out;
}
