"""Image files for tests, byte by byte where Pillow does not write what is wanted: deep PNGs and rare TIFFs."""

import struct
import zlib

import numpy as np

# EXIF's orientation: on which side of the upright picture the file's first row is, and on which its first column.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def as_stored(upright, orientation):
    """How a camera that was held in that way stores a picture `(height, width, …)`."""
    height, width = upright.shape[:2]
    first_row, first_column = SIDES[orientation]
    is_turned = first_row in ("left", "right")
    stored = np.empty((width, height, *upright.shape[2:]) if is_turned else upright.shape, upright.dtype)
    for row in range(stored.shape[0]):
        for column in range(stored.shape[1]):
            place = {}
            for side, distance in ((first_row, row), (first_column, column)):
                axis, length = ("row", height) if side in ("top", "bottom") else ("column", width)
                place[axis] = distance if side in ("top", "left") else length - 1 - distance
            stored[row, column] = upright[place["row"], place["column"]]
    return stored


def exif(orientation):
    """An EXIF block that says nothing but the orientation."""
    return b"MM\0*" + struct.pack(">I H HHIHH I", 8, 1, 274, 3, 1, orientation, 0, 0)


def png(samples, bits, *, transparent=None, orientation=None, filters=(0,)):
    """The bytes of a PNG.

    Args:
        samples: integers `(height, width, num_samples)`: shades, shades and alpha, colours, or colours and alpha.
        bits: of a sample, 1 to 16; fewer than 8 for shades alone.
        transparent: the one shade or colour that is transparent.
        orientation: EXIF's.
        filters: the rows' kinds of prediction, 0 to 4, in turn.
    """
    height, width, num_samples = samples.shape
    if bits < 8:
        digits = (samples[..., 0, None] >> np.arange(bits)[::-1]) & 1
        rows = np.packbits(digits.reshape(height, -1).astype("uint8"), axis=1)
    else:
        rows = samples.astype(f">u{bits // 8}").reshape(height, -1).view("uint8")
    step = max(1, num_samples * bits // 8)
    before = np.zeros(rows.shape[1], int)
    lines = []
    for number, row in enumerate(rows.astype(int)):
        kind = filters[number % len(filters)]
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (row, before))
        guess = left + before - corner
        distances = np.abs(guess - np.stack([left, before, corner]))
        nearest = np.choose(distances.argmin(axis=0), [left, before, corner])
        predicted = [0, left, before, (left + before) // 2, nearest][kind]
        lines.append(bytes([kind]) + ((row - predicted) % 256).astype("uint8").tobytes())
        before = row
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[num_samples], 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if transparent is not None:
        chunks.append((b"tRNS", np.asarray(transparent).astype(">u2").tobytes()))
    if orientation is not None:
        chunks.append((b"eXIf", exif(orientation)))
    chunks += [(b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    whole = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def tiff(rows, width, bits, *, white_is_zero=False, kind=1, num_samples=1, byte_order="<", is_packed=False):
    """The bytes of a TIFF of one strip.

    Args:
        rows: the bytes of each row.
        width: in pixels.
        bits: of a sample.
        white_is_zero: whether shades count from white to black.
        kind: of a sample: 1 unsigned integers, 2 signed, 3 floats.
        num_samples: 1 for shades, 3 for colours.
        byte_order: "<" or ">".
        is_packed: whether the strip is deflated.
    """
    strip = zlib.compress(b"".join(rows)) if is_packed else b"".join(rows)
    fields = {
        256: [width],
        257: [len(rows)],
        258: [bits] * num_samples,
        259: [8 if is_packed else 1],
        262: [2 if num_samples == 3 else 0 if white_is_zero else 1],
        273: [0],
        277: [num_samples],
        278: [len(rows)],
        279: [len(strip)],
        339: [kind] * num_samples,
    }
    # Header, number of fields, fields of 12 bytes each, no further directory; then lists too long for their field.
    behind = 8 + 2 + 12 * len(fields) + 4
    fields[273] = [behind + sum(4 * len(values) for values in fields.values() if len(values) > 1)]
    entries, lists = b"", b""
    for tag, values in fields.items():
        packed = struct.pack(f"{byte_order}{len(values)}I", *values)
        place = packed if len(values) == 1 else struct.pack(f"{byte_order}I", behind + len(lists))
        entries += struct.pack(f"{byte_order}HHI", tag, 4, len(values)) + place
        lists += packed if len(values) > 1 else b""
    head = (b"II" if byte_order == "<" else b"MM") + struct.pack(f"{byte_order}HIH", 42, 8, len(fields))
    return head + entries + bytes(4) + lists + strip
