// An animated picture as a GIF file. No DOM: pixels come as a canvas has them, one 32-bit number each.

const COLOURS = 256;
const UNCHANGED = COLOURS - 1; // lets the frame before show
const CLEAR = 256; // codes of GIF's LZW for 8-bit pixels
const END = 257;
const MOST_CODES = 4096;

/** The colours that a picture has most of, at most 255. */
function coloursOf(pixels) {
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  return [...counts].sort(([, a], [, b]) => b - a).slice(0, UNCHANGED).map(([colour]) => colour);
}

/**
 * A file to which frames are added, and which plays for ever. add(pixels, centiseconds): width * height of them, each
 * shown in the nearest of `colours`; only what has changed is written. done() gives its bytes, in pieces.
 */
function gifFile(width, height, colours) {
  const nearest = new Map(colours.map((colour, index) => [colour, index]));
  const table = new Uint8Array(3 * COLOURS);
  for (const [i, colour] of colours.entries()) table.set(channelsOf(colour), 3 * i);
  const sizes = [...littleEndian(width), ...littleEndian(height)];
  const pieces = [[...ascii("GIF89a"), ...sizes, 0xf7, 0, 0], table, [0x21, 0xff, 11, ...ascii("NETSCAPE2.0"), 3, 1, 0, 0, 0]];
  let [before, last] = [null, null]; // last: a frame whose time is not over yet

  function indexOf(colour) {
    if (!nearest.has(colour)) nearest.set(colour, nearestOf(colour, colours));
    return nearest.get(colour);
  }

  function write() {
    if (!last) return;
    pieces.push([0x21, 0xf9, 4, 5, ...littleEndian(last.centiseconds), UNCHANGED, 0], ...last.image);
    last = null;
  }

  return {
    add(pixels, centiseconds) {
      const changed = changedPart(width, height, before, pixels);
      if (!changed) {
        last.centiseconds += centiseconds;
        return;
      }
      write();
      const { left, top, wide, tall } = changed;
      const part = new Uint8Array(wide * tall);
      for (let y = 0, at = 0; y < tall; y++) {
        const begin = (top + y) * width + left;
        for (let i = begin; i < begin + wide; i++) part[at++] = before?.[i] === pixels[i] ? UNCHANGED : indexOf(pixels[i]);
      }
      before = pixels;
      const place = [left, top, wide, tall].flatMap(littleEndian);
      last = { centiseconds, image: [[0x2c, ...place, 0, 8], inBlocks(lzw(part)), [0]] };
    },
    done() {
      write();
      return [...pieces, [0x3b]].map((piece) => Uint8Array.from(piece));
    },
  };
}

const ascii = (text) => [...text].map((letter) => letter.charCodeAt(0));
const littleEndian = (number) => [number & 255, number >> 8];
const channelsOf = (colour) => [colour & 255, (colour >> 8) & 255, (colour >> 16) & 255];

function nearestOf(colour, colours) {
  const [red, green, blue] = channelsOf(colour);
  let [best, least] = [0, Infinity];
  for (const [i, each] of colours.entries()) {
    const [r, g, b] = channelsOf(each);
    const distance = (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

/** The rectangle outside of which two pictures are the same, null where they are everywhere; all of a first picture. */
function changedPart(width, height, before, pixels) {
  if (!before) return { left: 0, top: 0, wide: width, tall: height };
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (before[at] === pixels[at]) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), y];
    }
  }
  return right < 0 ? null : { left, top, wide: right - left + 1, tall: bottom - top + 1 };
}

/** GIF's LZW of 8-bit pixels: codes of 9 bits and more, the lowest bit first. */
function lzw(pixels) {
  const bytes = [];
  let [held, bits, size, next] = [0, 0, 9, END + 1];
  const known = new Map(); // the code of a known run and the pixel behind it
  const emit = (code) => {
    held |= code << bits;
    for (bits += size; bits >= 8; bits -= 8, held >>>= 8) bytes.push(held & 255);
  };
  emit(CLEAR);
  let run = pixels[0];
  for (let i = 1; i < pixels.length; i++) {
    const longer = run * 256 + pixels[i];
    const code = known.get(longer);
    if (code !== undefined) {
      run = code;
      continue;
    }
    emit(run);
    run = pixels[i];
    if (next === MOST_CODES) {
      emit(CLEAR);
      known.clear();
      [size, next] = [9, END + 1];
    } else {
      if (next === 1 << size) size += 1; // who reads it knows one code less
      known.set(longer, next++);
    }
  }
  emit(run);
  emit(END);
  if (bits) bytes.push(held & 255);
  return bytes;
}

/** Bytes in blocks of at most 255, each behind its length. */
function inBlocks(bytes) {
  const blocks = [];
  for (let i = 0; i < bytes.length; i += 255) {
    const block = bytes.slice(i, i + 255);
    blocks.push(block.length, ...block);
  }
  return blocks;
}
