// What an image file holds, as the student's training saw it: keras_distill/data/image_file.py in JavaScript. Change the
// two together. The browser decodes 8 bits; PNGs of 16 bits are read here, since a canvas would cut them down.

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const SAMPLES_OF_COLOUR_TYPE = { 0: 1, 2: 3, 4: 2, 6: 4 };

// { height, width, pixels }: red, green and blue of every pixel in [0, 1], upright, before a black background.
export async function readImage(file) {
  const buffer = await file.arrayBuffer();
  const bytes = new Uint8Array(buffer);
  const kind = kindOf(bytes);
  if (!kind) throw new Error("it must be a PNG, JPEG, WebP, GIF or BMP. Save it as one of these.");
  const chunks = kind === "png" ? pngChunks(bytes) : kind === "webp" ? webpChunks(bytes) : [];
  if (isAnimated(kind, bytes, chunks)) throw new Error("it must hold one image; it is an animation. Save the frame that you mean.");
  if (kind === "webp" && orientationOf(chunks.find(({ name }) => name === "EXIF")?.data) > 1) {
    // Some browsers turn it, some do not, and none says so.
    throw new Error("a WebP must be stored upright; this one's EXIF turns it. Save it upright, or as a JPEG.");
  }
  if (kind === "png" && chunks[0].data[8] === 16) {
    return upright(beforeBlack(await deepPng(chunks)), orientationOf(chunks.find(({ name }) => name === "eXIf")?.data));
  }
  return beforeBlack(await decodedByBrowser(new Blob([buffer])));
}

// Bilinear, as Pillow does it: where an image shrinks, every pixel counts.
export function resized({ height, width, pixels }, newHeight, newWidth) {
  const across = alongRows(pixels, height, width, newWidth);
  const down = alongRows(transposed(across, height, newWidth), newWidth, height, newHeight);
  return { height: newHeight, width: newWidth, pixels: transposed(down, newWidth, newHeight) };
}

function kindOf(bytes) {
  const text = String.fromCharCode(...bytes.subarray(0, 12));
  if (PNG.every((byte, index) => bytes[index] === byte)) return "png";
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return "jpeg";
  if (text.startsWith("GIF8")) return "gif";
  if (text.startsWith("RIFF") && text.endsWith("WEBP")) return "webp";
  return text.startsWith("BM") ? "bmp" : null;
}

function pngChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const chunks = [];
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    chunks.push({ name, data: bytes.subarray(at + 8, at + 8 + view.getUint32(at)) });
  }
  return chunks;
}

function webpChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const chunks = [];
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    const name = String.fromCharCode(...bytes.subarray(at, at + 4));
    chunks.push({ name, data: bytes.subarray(at + 8, at + 8 + size) });
    at += 8 + size + (size % 2);
  }
  return chunks;
}

function isAnimated(kind, bytes, chunks) {
  if (kind === "gif") return numGifFrames(bytes) > 1;
  if (kind === "webp") return chunks.filter(({ name }) => name === "ANMF").length > 1;
  const control = chunks.find(({ name }) => name === "acTL");
  return control !== undefined && new DataView(control.data.buffer, control.data.byteOffset).getUint32(0) > 1;
}

function numGifFrames(bytes) {
  const tableSize = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let at = 13 + tableSize(bytes[10]);
  let count = 0;
  while (at < bytes.length && bytes[at] !== 0x3b) {
    if (bytes[at] === 0x2c) {
      count += 1;
      at += 11 + tableSize(bytes[at + 9]); // past the descriptor, its table and the code's size
    } else {
      at += 2; // an extension's two bytes of introduction
    }
    while (bytes[at]) at += bytes[at] + 1;
    at += 1;
  }
  return count;
}

// EXIF's orientation, 1 to 8; 1 where nothing says.
function orientationOf(exif) {
  if (!exif) return 1;
  const start = String.fromCharCode(...exif.subarray(0, 4)) === "Exif" ? 6 : 0;
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.length - start);
  const isLittle = view.getUint8(0) === 0x49;
  const directory = view.getUint32(4, isLittle);
  for (let entry = 0; entry < view.getUint16(directory, isLittle); entry += 1) {
    const at = directory + 2 + 12 * entry;
    if (view.getUint16(at, isLittle) === 274) return view.getUint16(at + 8, isLittle);
  }
  return 1;
}

// Red, green, blue, alpha of every pixel, and the value that stands for white.
async function decodedByBrowser(blob) {
  // Colour profiles and gamma are left aside, as in training; EXIF turns the image.
  const bitmap = await createImageBitmap(blob, {
    colorSpaceConversion: "none", imageOrientation: "from-image", premultiplyAlpha: "none",
  });
  const { height, width } = bitmap;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return { height, width, samples: context.getImageData(0, 0, width, height).data, white: 255 };
}

async function deepPng(chunks) {
  const header = new DataView(chunks[0].data.buffer, chunks[0].data.byteOffset);
  const [width, height] = [header.getUint32(0), header.getUint32(4)];
  if (header.getUint8(12)) throw new Error("a PNG of 16 bits must not be interlaced. Save it without.");
  const numSamples = SAMPLES_OF_COLOUR_TYPE[header.getUint8(9)];
  const parts = chunks.filter(({ name }) => name === "IDAT").map(({ data }) => data);
  const inflated = new Response(new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")));
  const filtered = await inflated.arrayBuffer().catch(() => {
    throw new Error("its data are damaged. Replace it.");
  });
  const rows = unfiltered(new Uint8Array(filtered), height, 2 * numSamples * width, 2 * numSamples);
  const view = new DataView(rows.buffer);
  const transparent = chunks.find(({ name }) => name === "tRNS")?.data;
  const samples = new Uint16Array(4 * height * width);
  for (let pixel = 0; pixel < height * width; pixel += 1) {
    const stored = Array.from({ length: numSamples }, (_, place) => view.getUint16(2 * (numSamples * pixel + place)));
    const isTransparent = transparent && stored.every((sample, place) => sample === 256 * transparent[2 * place] + transparent[2 * place + 1]);
    const colours = numSamples < 3 ? [stored[0], stored[0], stored[0]] : stored.slice(0, 3);
    const alpha = numSamples % 2 ? (isTransparent ? 0 : 65535) : stored.at(-1);
    samples.set([...colours, alpha], 4 * pixel);
  }
  return { height, width, samples, white: 65535 };
}

// A PNG's rows hold differences from their neighbours (PNG specification, section 9).
function unfiltered(bytes, height, rowSize, pixelSize) {
  const rows = new Uint8Array(height * rowSize);
  for (let row = 0; row < height; row += 1) {
    const filter = bytes[row * (rowSize + 1)];
    for (let column = 0; column < rowSize; column += 1) {
      const at = row * rowSize + column;
      const left = column >= pixelSize ? rows[at - pixelSize] : 0;
      const up = row ? rows[at - rowSize] : 0;
      const corner = row && column >= pixelSize ? rows[at - rowSize - pixelSize] : 0;
      const predicted = [0, left, up, (left + up) >> 1, nearest(left, up, corner)][filter];
      rows[at] = bytes[row * (rowSize + 1) + 1 + column] + predicted;
    }
  }
  return rows;
}

function nearest(left, up, corner) {
  const guess = left + up - corner;
  const [toLeft, toUp, toCorner] = [left, up, corner].map((value) => Math.abs(guess - value));
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

function beforeBlack({ height, width, samples, white }) {
  const pixels = new Float32Array(3 * height * width);
  const isEightBits = white === 255;
  let [darkest, brightest, clearest, densest] = [white, 0, white, 0];
  for (let place = 0; place < height * width; place += 1) {
    const alpha = samples[4 * place + 3];
    [clearest, densest] = [Math.min(clearest, alpha), Math.max(densest, alpha)];
    for (let channel = 0; channel < 3; channel += 1) {
      const share = samples[4 * place + channel] * (alpha / white);
      // A canvas holds colours times alpha, rounded, and divides by alpha when it is read: this is what it held.
      const value = isEightBits ? Math.round(share) : share;
      [darkest, brightest] = [Math.min(darkest, value), Math.max(brightest, value)];
      pixels[3 * place + channel] = value / white;
    }
  }
  if (darkest === brightest && clearest !== densest) {
    throw new Error("it must be visible before a black background; it is black on transparent. Put it before another colour.");
  }
  return { height, width, pixels };
}

// EXIF's orientation says on which sides of the picture the first row and the first column are.
function upright({ height, width, pixels }, orientation) {
  const image = orientation > 4 && orientation < 9
    ? { height: width, width: height, pixels: transposed(pixels, height, width) }
    : { height, width, pixels };
  const result = new Float32Array(pixels.length);
  for (let row = 0; row < image.height; row += 1) {
    const source = [3, 4, 7, 8].includes(orientation) ? image.height - 1 - row : row;
    for (let column = 0; column < image.width; column += 1) {
      const place = source * image.width + ([2, 3, 6, 7].includes(orientation) ? image.width - 1 - column : column);
      result.set(image.pixels.subarray(3 * place, 3 * place + 3), 3 * (row * image.width + column));
    }
  }
  return { ...image, pixels: result };
}

function alongRows(pixels, height, width, newWidth) {
  const scale = width / newWidth;
  const reach = Math.max(scale, 1);
  const result = new Float32Array(3 * height * newWidth);
  for (let column = 0; column < newWidth; column += 1) {
    const centre = (column + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), width);
    const weights = [];
    for (let place = first; place < end; place += 1) weights.push(Math.max(1 - Math.abs(place - centre + 0.5) / reach, 0));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let row = 0; row < height; row += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        let sum = 0;
        for (let place = first; place < end; place += 1) sum += weights[place - first] * pixels[3 * (row * width + place) + channel];
        result[3 * (row * newWidth + column) + channel] = sum / total;
      }
    }
  }
  return result;
}

function transposed(pixels, height, width) {
  const result = new Float32Array(pixels.length);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        result[3 * (column * height + row) + channel] = pixels[3 * (row * width + column) + channel];
      }
    }
  }
  return result;
}
