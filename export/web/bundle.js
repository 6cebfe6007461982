// Reads a bundle: manifest.json, golden.npz, checksums. No dependency.

const FORMAT_VERSION = 1;

const ARRAY_TYPES = {
  "<f4": Float32Array, "<f8": Float64Array, "<i4": Int32Array, "<i8": BigInt64Array, "|u1": Uint8Array, "|b1": Uint8Array,
  "|i1": Int8Array, "<u2": Uint16Array, "<i2": Int16Array, "<u4": Uint32Array,
};

export async function readManifest(root) {
  const manifest = JSON.parse(new TextDecoder().decode(await fetchBytes(new URL("manifest.json", root))));
  if (manifest.format_version !== FORMAT_VERSION) {
    throw new Error(`format_version must be ${FORMAT_VERSION}; got ${manifest.format_version}. Ship the student again.`);
  }
  return manifest;
}

// The bytes of a file of the bundle, refused where they are not those that were shipped.
export async function readFile(root, manifest, name) {
  const url = new URL(name, root);
  if (!url.href.startsWith(root.href) || !(name in manifest.files)) {
    throw new Error(`a path of a manifest must stay inside the bundle; got ${name}. Do not trust this bundle.`);
  }
  const bytes = await fetchBytes(url);
  // Browsers have SHA-256 on https and localhost only.
  if (crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const checksum = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (checksum !== manifest.files[name].sha256) {
      throw new Error(`${name} must have the checksum in the manifest; it was changed. Copy the bundle again.`);
    }
  }
  return bytes;
}

export async function readJson(root, manifest, name) {
  return JSON.parse(new TextDecoder().decode(await readFile(root, manifest, name)));
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname} must be in the bundle; got HTTP ${response.status}.`);
  return await response.arrayBuffer();
}

// An .npz is a zip of .npy files; NumPy's savez stores them uncompressed. The central directory at the end has the sizes.
export function readNpz(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error("golden.npz must be a zip file; it is damaged.");
  const arrays = {};
  let position = view.getUint32(end + 16, true);
  for (let entry = view.getUint16(end + 10, true); entry > 0; entry -= 1) {
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((at) => view.getUint16(position + at, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, position + 46, nameLength)).replace(/\.npy$/, "");
    if (view.getUint16(position + 10, true) !== 0) throw new Error(`${name} in golden.npz must be stored uncompressed.`);
    const size = view.getUint32(position + 24, true);
    const local = view.getUint32(position + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    arrays[name] = readNpy(buffer.slice(start, start + size));
    position += 46 + nameLength + extraLength + commentLength;
  }
  return arrays;
}

function readNpy(buffer) {
  const view = new DataView(buffer);
  const isFirstVersion = view.getUint8(6) === 1;
  const start = isFirstVersion ? 10 : 12;
  const length = isFirstVersion ? view.getUint16(8, true) : view.getUint32(8, true);
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, length));
  const type = header.match(/'descr':\s*'([^']+)'/)[1];
  const shape = header.match(/'shape':\s*\(([^)]*)\)/)[1].split(",").filter((size) => size.trim()).map(Number);
  if (!(type in ARRAY_TYPES) || /'fortran_order':\s*True/.test(header)) throw new Error(`no reader for arrays of ${type}.`);
  return { shape, data: new ARRAY_TYPES[type](buffer.slice(start + length)) };
}
