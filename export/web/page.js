// The page: golden inputs first, then whatever is drawn, dropped or written. onnxruntime-web runs it, from local files.

import * as ort from "./runtime/ort.wasm.min.mjs";
import { readFile, readJson, readManifest, readNpz } from "./bundle.js";
import { readImage, resized } from "./image.js";
import { logMel, NUM_FRAMES, NUM_MELS, readSound } from "./sound.js";
import { textInput, textTokenizer } from "./text.js";

const MS_PER_BLOCK = 60; // performance.now() ticks in 0.1 ms without isolation: only blocks of calls can be timed
const MS_OF_RECORDING = 1500;
const MOST_CALLS = 20000; // a clock that stands still must not stop the page
const root = new URL("../", import.meta.url);
const find = (id) => document.getElementById(id);
let manifest, session, golden, input;
let answered = []; // the classes of the golden examples
let hasStrokes = false; // what else is on the canvas gives way to the first stroke

async function main() {
  manifest = await readManifest(root);
  if (manifest.inputs.length !== 1) throw new Error("the page takes students of one input; this one has more.");
  [input] = manifest.inputs;
  find("name").textContent = manifest.name;
  showVerdict();
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.wasm.numThreads = 1;
  const model = await readFile(root, manifest, manifest.artifacts.onnx.file);
  golden = readNpz(await readFile(root, manifest, "golden.npz"));
  session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  find("about").textContent =
    `${manifest.artifacts.onnx.file}, ${manifest.artifacts.onnx.bytes.toLocaleString("en")} bytes; ` +
    `the input: ${manifest.preprocessing}. Everything runs on this device; nothing is sent.`;
  const holds = await checkGolden();
  showExamples();
  if (isSound()) listenToSound();
  else if (isImage()) listen();
  else find("canvas").hidden = find("drawing-buttons").hidden = true;
  if (manifest.preparation?.kind === "text") await listenToText();
  const asked = Number(new URLSearchParams(location.search).get("example") ?? 0);
  await showExample(Math.min(Math.max(Math.trunc(asked) || 0, 0), numExamples() - 1));
  document.body.dataset.state = holds ? "ready" : "differs";
}

// Whether the student is worth using, as it was found when it was shipped.
function showVerdict() {
  const found = manifest.usefulness;
  if (!found) return;
  const percent = (share) => `${(100 * share).toFixed(2)} %`;
  const [low, high] = found.accuracy_interval.map(percent);
  const verdict = manifest.verdict ? ` Distilling against labels alone: ${manifest.verdict.word}.` : "";
  find("verdict").hidden = false;
  find("verdict").className = { green: "good", red: "bad" }[found.colour] ?? "amber";
  find("verdict").textContent =
    `${found.colour.toUpperCase()}: right on ${percent(found.accuracy)} of ${found.num_items.toLocaleString("en")} test examples ` +
    `(${low} to ${high}); chance is ${percent(found.chance)}.${verdict} ${found.reasons.join(" ")}`;
}

// Golden answers

async function checkGolden() {
  const inputs = golden[`input/${input.name}`];
  const outputs = await runAll(inputs.data, inputs.shape);
  const isOnly = session.outputNames.length === 1;
  const tolerances = manifest.artifacts.onnx.golden_tolerance;
  let [worst, holds] = [0, true];
  const logits = outputs[manifest.outputs[0]];
  answered = Array.from({ length: inputs.shape[0] }, (_, row) => classOf(logits.data, row, logits.dims[1]));
  for (const name of session.outputNames) {
    const key = isOnly ? "logits/onnx" : `logits/onnx/${name}`;
    if (!(key in golden)) throw new Error(`golden.npz must hold ${key}; it does not. Copy the bundle again.`);
    const farther = (largest, value, index) => Math.max(largest, Math.abs(value - golden[key].data[index]));
    const difference = outputs[name].data.reduce(farther, 0);
    // What is no number is within no tolerance.
    holds = holds && difference <= (isOnly ? tolerances : tolerances[name]);
    worst = Math.max(worst, difference);
  }
  find("golden").className = holds ? "good" : "bad";
  find("golden").textContent = holds
    ? `✓ ${inputs.shape[0]} golden inputs are answered as when the student was shipped (largest difference ${worst.toExponential(1)}).`
    : `✗ The golden inputs are answered otherwise than when the student was shipped: by ${worst.toExponential(1)}. Do not use it.`;
  return holds;
}

// The class of a row of logits; of one unit, whether it is positive.
function classOf(data, row, width) {
  const logits = Array.from(data.slice(row * width, (row + 1) * width));
  return width === 1 ? Number(logits[0] > 0) : logits.indexOf(Math.max(...logits));
}

function isRight(index) {
  return answered[index] === Number(golden.labels.data[index]);
}

function numExamples() {
  return golden[`input/${input.name}`].shape[0];
}

function goldenExample(index) {
  const { shape, data } = golden[`input/${input.name}`];
  const size = shape.slice(1).reduce((product, length) => product * length, 1);
  return data.slice(index * size, (index + 1) * size);
}

// One answer

async function runAll(data, shape) {
  return session.run({ [input.name]: new ort.Tensor(input.dtype, data, shape) });
}

// The logits; of one unit z the pair (0, z), whose softmax is its sigmoid.
async function run(data, shape) {
  const logits = (await runAll(data, shape))[manifest.outputs[0]].data;
  return logits.length === shape[0] ? [...logits].flatMap((logit) => [0, logit]) : logits;
}

async function answer(example, source) {
  const shape = [1, ...input.shape.slice(1)];
  const logits = await run(example, shape);
  let calls = 0;
  const start = performance.now();
  do {
    await run(example, shape);
    calls += 1;
  } while (performance.now() - start < MS_PER_BLOCK && calls < MOST_CALLS);
  const milliseconds = (performance.now() - start) / calls;
  find("latency").textContent = `${milliseconds.toFixed(3)} ms an example (mean of ${calls} calls, one thread)`;
  find("source").textContent = source;
  showProbabilities(softmax([...logits].map((logit) => logit / manifest.temperature)));
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

function showProbabilities(probabilities) {
  const ranked = probabilities.map((value, index) => ({ value, index })).sort((a, b) => b.value - a.value).slice(0, 10);
  find("probabilities").replaceChildren(
    ...ranked.map(({ value, index }) => {
      const row = document.createElement("li");
      for (const name of ["label", "bar", "value"]) row.append(Object.assign(document.createElement("span"), { className: name }));
      row.children[0].textContent = manifest.class_names[index];
      row.children[1].style.width = `${100 * value}%`;
      row.children[2].textContent = `${(100 * value).toFixed(1)} %`;
      return row;
    }),
  );
}

// Texts

async function listenToText() {
  const specification = await readJson(root, manifest, manifest.preparation.file);
  if (specification.algorithm !== "word pieces") {
    find("about").textContent += " The page has no tokeniser of this kind: it shows the examples alone.";
    return;
  }
  const tokenize = textTokenizer(await readJson(root, manifest, specification.tokenizer));
  find("writing").hidden = false;
  let isBusy = false;
  const answerLatest = async () => {
    if (isBusy) return; // what is written meanwhile is answered next
    isBusy = true;
    try {
      let text;
      do {
        text = find("text").value;
        mark(-1);
        await answer(textInput(specification, tokenize, text), "your text");
      } while (text !== find("text").value);
    } finally {
      isBusy = false;
    }
  };
  find("text").oninput = () => answerLatest().catch(fail);
}

// Images

function isImage() {
  return input.shape.length === 4 && [1, 3].includes(input.shape[3]);
}

// Strokes are shades: of photographs nobody draws one.
function isDrawn() {
  return isImage() && input.shape[3] === 1;
}

function showExamples() {
  for (let index = 0; index < numExamples(); index += 1) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: titleOf(index) });
    button.append(isImage() ? picture(goldenExample(index)) : `${index}`);
    const sign = isRight(index) ? "✓" : "✗";
    button.append(Object.assign(document.createElement("span"), { className: isRight(index) ? "good" : "bad", textContent: sign }));
    button.onclick = () => showExample(index).catch(fail);
    find("examples").append(button);
  }
}

function titleOf(index) {
  const told = isRight(index) ? "✓" : `✗ answered ${manifest.class_names[answered[index]]}`;
  return `example ${index}, labelled ${manifest.class_names[golden.labels.data[index]]} ${told}`;
}

async function showExample(index) {
  if (isImage()) show(picture(goldenExample(index)));
  hasStrokes = false;
  mark(index);
  await answer(goldenExample(index), titleOf(index));
}

// Says which example is on the canvas; -1 for none.
function mark(chosen) {
  [...find("examples").children].forEach((button, index) => button.setAttribute("aria-pressed", index === chosen));
}

// Puts a picture on the canvas, the whole of it.
function show(image) {
  const { width, height } = find("canvas");
  const context = find("canvas").getContext("2d");
  const scale = Math.min(width / image.width, height / image.height);
  const [shownWidth, shownHeight] = [scale * image.width, scale * image.height];
  // Small pictures are shown as the pixels that they are.
  context.imageSmoothingEnabled = scale < 2;
  context.fillRect(0, 0, width, height);
  context.drawImage(image, (width - shownWidth) / 2, (height - shownHeight) / 2, shownWidth, shownHeight);
  find("hint").hidden = true;
}

// The student's values for black and for white.
function pixelRange() {
  return input.pixel_range ?? input.value_range;
}

function picture(example) {
  const [, height, width, channels] = input.shape;
  const [low, high] = pixelRange();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pixels = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      const value = Number(example[pixel * channels + (channels === 3 ? channel : 0)]);
      pixels.data[4 * pixel + channel] = (255 * (value - low)) / (high - low);
    }
    pixels.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// A part of a canvas as the student's input.
function asInput(source, left, top, side) {
  const [, height, width] = input.shape;
  const scaled = Object.assign(document.createElement("canvas"), { width, height });
  const context = scaled.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, left, top, side, side, 0, 0, width, height);
  const drawn = context.getImageData(0, 0, width, height).data;
  return exampleOf(Float32Array.from({ length: 3 * width * height }, (_, place) => drawn[4 * Math.trunc(place / 3) + (place % 3)] / 255));
}

// Red, green and blue in [0, 1], of the student's size, as its input: of its channels and its range of values.
function exampleOf(pixels) {
  const [, height, width, channels] = input.shape;
  const [low, high] = pixelRange();
  const isInverted = find("invert").checked;
  const isWhole = input.dtype.includes("int");
  const example = input.dtype === "uint8" ? new Uint8Array(height * width * channels) : new Float32Array(height * width * channels);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    const [red, green, blue] = pixels.subarray(3 * pixel, 3 * pixel + 3);
    const isGrey = red === green && green === blue;
    const values = channels === 3 ? [red, green, blue] : [isGrey ? red : 0.299 * red + 0.587 * green + 0.114 * blue];
    values.forEach((value, channel) => {
      const scaled = low + (isInverted ? 1 - value : value) * (high - low);
      example[pixel * channels + channel] = isWhole ? Math.round(scaled) : scaled;
    });
  }
  return example;
}

function listen() {
  const canvas = find("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const clear = () => {
    context.fillRect(0, 0, canvas.width, canvas.height);
    find("hint").hidden = false;
    hasStrokes = false;
    mark(-1);
  };
  find("hint").textContent = isDrawn() ? "draw here, or drop an image" : "drop an image";
  canvas.setAttribute("aria-label", find("hint").textContent);
  clear();
  if (!isDrawn()) {
    canvas.parentElement.classList.add("still");
    find("clear").hidden = find("inverting").hidden = true;
    if (navigator.mediaDevices?.getUserMedia) listenToCamera();
  }
  let isDrawing = false;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  };
  canvas.onpointerdown = (event) => {
    if (!isDrawn()) return;
    if (!hasStrokes) clear();
    hasStrokes = isDrawing = true;
    find("hint").hidden = true;
    canvas.setPointerCapture(event.pointerId);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: canvas.width / 12, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...place(event));
    context.lineTo(...place(event));
    context.stroke();
  };
  canvas.onpointermove = (event) => {
    if (!isDrawing) return;
    context.lineTo(...place(event));
    context.stroke();
  };
  canvas.onpointerup = () => {
    if (!isDrawing) return;
    isDrawing = false;
    answer(asInput(canvas, ...aroundStrokes(context)), "your drawing").catch(fail);
  };
  canvas.onpointercancel = () => (isDrawing = false);
  find("clear").onclick = () => {
    clear();
    find("source").textContent = "";
    find("probabilities").replaceChildren();
    find("latency").textContent = "";
  };
  const open = async (file) => {
    mark(-1);
    hasStrokes = false;
    const [, height, width] = input.shape;
    const example = exampleOf(resized(await readImage(file), height, width).pixels);
    show(picture(example));
    await answer(example, file.name);
  };
  const refuse = (error) => (find("source").textContent = `this file is no picture that the page reads: ${error.message}`);
  find("file").onchange = (event) => event.target.files[0] && open(event.target.files[0]).catch(refuse);
  canvas.ondragover = (event) => event.preventDefault();
  canvas.ondrop = (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]).catch(refuse);
  };
}

// The first click shows what the camera sees, the second takes it: the square in the middle, as the page shows it.
function listenToCamera() {
  const [button, video] = [find("camera"), find("video")];
  button.hidden = false;
  const close = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = true;
    button.textContent = "Camera";
  };
  button.onclick = async () => {
    try {
      if (video.srcObject === null) {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
        await video.play();
        video.hidden = false;
        button.textContent = "Take the picture";
        return;
      }
      const side = Math.min(video.videoWidth, video.videoHeight);
      const example = asInput(video, (video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side);
      close();
      hasStrokes = false;
      mark(-1);
      show(picture(example));
      await answer(example, "your camera");
    } catch (error) {
      close();
      find("source").textContent = `the camera gives no picture: ${error.message}`;
    }
  };
}

// Sounds

function isSound() {
  return manifest.provenance?.data === "spoken_digit" && `${input.shape.slice(1)}` === `${[NUM_FRAMES, NUM_MELS, 1]}`;
}

function listenToSound() {
  find("drawing-buttons").hidden = true;
  find("sound-buttons").hidden = false;
  find("canvas").parentElement.classList.add("still");
  find("canvas").setAttribute("aria-label", "the energies of the recording: time down, pitch to the right");
  const refuse = (error) => (find("source").textContent = `this is no recording that the page hears: ${error.message}`);
  const open = async (file, source) => {
    mark(-1);
    const example = logMel(await readSound(file));
    show(picture(example));
    await answer(example, source);
  };
  find("recording").onchange = (event) => event.target.files[0] && open(event.target.files[0], event.target.files[0].name).catch(refuse);
  find("record").hidden = !navigator.mediaDevices?.getUserMedia;
  find("record").onclick = async () => {
    let stream;
    try {
      find("record").disabled = true;
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const recorder = new MediaRecorder(stream);
      const parts = [];
      recorder.ondataavailable = (event) => parts.push(event.data);
      const ended = new Promise((resolve) => (recorder.onstop = resolve));
      recorder.start();
      find("source").textContent = "listening…";
      setTimeout(() => recorder.stop(), MS_OF_RECORDING);
      await ended;
      await open(new Blob(parts), "your recording");
    } catch (error) {
      refuse(error);
    } finally {
      stream?.getTracks().forEach((track) => track.stop());
      find("record").disabled = false;
    }
  };
}

// The square around the strokes with a margin: handwriting sets centre their digits, people do not.
function aroundStrokes(context) {
  const { width, height } = context.canvas;
  const pixels = context.getImageData(0, 0, width, height).data;
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (pixels[4 * (y * width + x)] < 64) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  if (right < left) return [0, 0, width];
  const side = 1.4 * Math.max(right - left, bottom - top);
  return [(left + right - side) / 2, (top + bottom - side) / 2, side];
}

function fail(error) {
  find("golden").className = "bad";
  find("golden").textContent = `✗ ${error.message}`;
  document.body.dataset.state = "failed";
}

main().catch(fail);
