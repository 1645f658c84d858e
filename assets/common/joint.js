// What a trace means, as pure functions: no DOM, no state. The page's components are built on these,
// and the tests run them against the Python that wrote the trace (dynamo/sampling/records.py).

const LOG_RANGE = 16;
const LARGEST_CODE = 65535;

/** base64 of little-endian 16-bit codes -> Uint16Array. */
function codesFromBase64(text) {
  const bytes = atob(text);
  const codes = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < codes.length; i++) {
    codes[i] = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
  }
  return codes;
}

/** Logarithmic code -> probability; code 0 is zero. */
function probabilityFromCode(code) {
  return code === 0 ? 0 : Math.exp(LOG_RANGE * (code / LARGEST_CODE - 1));
}

/** A "joint" line -> its grids and its largest chunks as plain numbers. Rows are first tokens, columns second. */
function unpackJoint(line) {
  const [rows, columns] = line.p;
  const product = rows.flatMap((row) => columns.map((column) => row * column));
  const masked = Array.from(codesFromBase64(line.grid), probabilityFromCode);
  const cells = codesFromBase64(line.cells);
  const chunks = [];
  for (let start = 0; start < cells.length; start += line.order + 1) {
    const ranks = Array.from(cells.subarray(start, start + line.order));
    chunks.push({ ranks, value: probabilityFromCode(cells[start + line.order]) });
  }
  const given = line.given ? Array.from(codesFromBase64(line.given), probabilityFromCode) : null;
  return { product, masked, chunks, given };
}

/** Whether the mask was off. Cells too small to be recorded are no sign of it. */
function isUnmasked(pass, joint, correction) {
  if (correction) return false;
  const least = probabilityFromCode(1);
  return pass.kept === 1 && joint.masked.every((value, at) => value > 0 || joint.product[at] < least);
}

/** What a chunk of `order` tokens has to exceed. */
function barOf(threshold, order) {
  return threshold ** (order - 1);
}

/**
 * Stage 3 at any threshold. Thresholds are defined on whole chunks, so a cell of the grid keeps the chunks that
 * start with its pair and are above the bar themselves, as a share of everything kept.
 *
 * kept: chunks above the bar; outside: those of them beyond the rows and columns shown; exact: false where the bar
 * is so low that chunks may be above it which the trace did not record.
 */
function applyThreshold(joint, line, threshold) {
  const width = line.p[1].length;
  const bar = barOf(threshold, line.order);
  const above = joint.chunks.filter((chunk) => chunk.value > bar);
  const total = above.reduce((sum, chunk) => sum + chunk.value, 0);
  const grid = new Array(joint.masked.length).fill(0);
  let outside = 0;
  for (const { ranks, value } of above) {
    if (ranks[0] < line.p[0].length && ranks[1] < width) grid[ranks[0] * width + ranks[1]] += value / total;
    else outside += 1;
  }
  return { grid, bar, kept: above.length, outside, exact: line.floor <= bar };
}

/** Whether a pass verified drafts (exact mode) instead of drawing a chunk. */
function isExact(pass) {
  return pass.exact === true;
}

/** Whether a pass drew token by token, each given those before: the threshold slider has nothing to say of it. */
function isGrown(pass) {
  return isExact(pass) || pass.anchored === true;
}

/** The third stage of such a pass: the grid's row of the token that was drawn first, as shares. */
function rowGiven(joint, masked) {
  const width = joint.p[1].length;
  const from = (joint.picked[0] ?? joint.p[0].length) * width;
  const total = masked.slice(from, from + width).reduce((sum, value) => sum + value, 0);
  return masked.map((value, at) => (at >= from && at < from + width && total > 0 ? value / total : 0));
}

/**
 * The joints that a pass looked at, highest order first: {order, best, reason, atMost}. The one it emitted has no
 * reason; atMost: best is only a bound;
 * best: its largest value before thresholds, or after the penalty where that was the reason. None where the
 * chunk was grown.
 */
function triesOf(pass, joint) {
  if (isGrown(pass)) return [];
  const tries = (pass.backoffs ?? []).map(([order, reason, best, , atMost]) => ({ order, best, reason, atMost }));
  const order = emittedOrder(pass);
  if (order > 1) tries.push({ order, best: pass.best ?? largestOf(joint), reason: "" });
  return tries;
}

/** Tokens of the chunk that a pass chose; the answer may end inside it. */
function emittedOrder(pass) {
  return pass.order ?? pass.ids.length;
}

function largestOf(joint) {
  return joint ? Math.max(0, ...unpackJoint(joint).chunks.map((chunk) => chunk.value)) : 0;
}

/** Whether a recorded try would have gone through at a threshold, by its joint values alone. */
function clears({ order, best, reason }, threshold) {
  return reason !== "mask" && reason !== "kept_mass" && best > barOf(threshold, order);
}

/**
 * How many tokens a pass would have emitted at another threshold, after the same text. certain: false where it
 * would have tried an order that the recorded pass had no need to try; `order` is then the most it can be.
 */
function decisionAt(tries, threshold) {
  const through = tries.find((attempt) => clears(attempt, threshold));
  if (through) return { order: through.order, certain: !through.atMost };
  const order = Math.max(1, Math.min(...tries.map((attempt) => attempt.order)) - 1);
  return { order, certain: order === 1 };
}

/** 0.0912 -> "9.1 %", keeping two digits that mean something. */
function percent(value) {
  const hundred = 100 * value;
  if (hundred === 0) return "0 %";
  if (hundred < 0.001) return "< 0.001 %";
  const digits = hundred >= 99.95 ? 0 : hundred >= 1 ? 1 : Math.min(3, 1 - Math.floor(Math.log10(hundred)));
  return `${Number(hundred.toFixed(digits))} %`;
}

/** "25 % = 0.5²": the bar, and where it comes from. */
function barInWords(threshold, order) {
  const powers = { 3: "²", 4: "³", 5: "⁴" };
  const bar = percent(barOf(threshold, order));
  return order === 2 ? `${bar} = ε` : `${bar} = ${Number(threshold.toFixed(4))}${powers[order]}`;
}

/** One entry of a pass line's "backoffs" in words; from: the order, or all that were given up by then. */
function backOffInWords([order, reason, best, bar, atMost], from = order) {
  const threshold = bar ** (1 / (order - 1));
  const sentences = {
    threshold: `best joint ${atMost ? "at most " : ""}${percent(best)}, not above ${barInWords(threshold, order)}`,
    penalty: `after the repetition penalty no chunk is above ${barInWords(threshold, order)}`,
    mask: `none of the candidate ${order === 2 ? "pairs" : "chunks"} occurs in the training text`,
    kept_mass: "too little of the product survived the mask",
  };
  return `Backed off from ${from}: ${sentences[reason] ?? bidiIsolate(reason)}`;
}

/** Spaces, line breaks and commands of direction made visible, for tokens that stand alone. */
function visible(text) {
  return bidiIsolate(text.replace(/ /g, "·").replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥"));
}

/**
 * The clocks of a lane over its first `count` passes; end: its end line, where a run that was timed again says so.
 * tokensPerSecond leaves the prompt's pass out, as does decoded, its tokens; firstToken is that pass, in milliseconds.
 * Of the other passes: tokensPerSecond is their tokens a pass times their mean speed, over so many timings; spread:
 * that mean's standard error, as a share of it.
 */
function laneClocks(passes, count = passes.length, end = null) {
  const clocks = { passes: count, tokens: 0, decoded: 0, milliseconds: 0, firstToken: 0 };
  const speeds = []; // passes a second
  let later = 0;
  for (const step of passes.slice(0, count)) {
    clocks.tokens += step.ids.length;
    clocks.milliseconds += step.ms;
    if (step.prefill) clocks.firstToken += step.ms;
    else {
      clocks.decoded += step.ids.length;
      later += 1;
      if (step.ms > 0) speeds.push(1000 / step.ms);
    }
  }
  const [timings, speed, error] = (count === passes.length && end?.timed) || speedOfPasses(speeds);
  return {
    ...clocks,
    tokensPerPass: count > 0 ? clocks.tokens / count : 0,
    tokensPerSecond: later ? (speed * clocks.decoded) / later : 0,
    spread: error,
    timings,
  };
}

/** As `PassSpeed` in dynamo/trace/ndjson.py: of how many passes, their mean speed, and its standard error as a share. */
function speedOfPasses(speeds) {
  const count = speeds.length;
  const mean = speeds.reduce((sum, each) => sum + each, 0) / Math.max(1, count);
  const squares = speeds.reduce((sum, each) => sum + (each - mean) ** 2, 0);
  return [count, mean, count > 1 ? Math.sqrt(squares / (count - 1) / count) / mean : 0];
}

/**
 * Of a lane's first passes: how many of its pairs of tokens are different (distinct-2), and how many runs of four
 * stood there before (seq-rep-4), as shares; null where there are none. As dynamo/evaluation/text_measures.py. error:
 * the first one's standard error, as if each pair were drawn by itself, with a new and an old one added.
 */
function varietyOf(passes, count = passes.length) {
  const ids = passes.slice(0, count).flatMap((step) => step.ids);
  const different = (n) => {
    const grams = ids.slice(n - 1).map((_, i) => ids.slice(i, i + n).join());
    return grams.length ? new Set(grams).size / grams.length : null;
  };
  const [twos, fours, pairs] = [different(2), different(4), Math.max(0, ids.length - 1)];
  const near = (pairs * twos + 1) / (pairs + 2);
  const error = Math.sqrt((near * (1 - near)) / (pairs + 2));
  return { distinct: twos, repeated: fours === null ? null : 1 - fours, error };
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : word.endsWith("s") ? "es" : "s"}`;
}
