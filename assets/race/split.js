// Why the wall clock gains less than the passes: where the time of a pass goes. In words, bars and a table.
//
// A split is {base, dynamo}, each {parts: {name: milliseconds}, pass_ms}, from a profiled run of its own.

const SPLIT_SOURCE = "From a separate profiled run on this machine.";
const PART_COLOURS = 7; // as many as race.css knows

/** The two lanes of a split as rows: {part, base, dynamo} in milliseconds a pass, in the order of the work. */
function rowsOfSplit({ base, dynamo }) {
  const parts = Object.keys({ ...dynamo.parts, ...base.parts });
  return parts.map((part) => ({ part, base: base.parts[part] ?? 0, dynamo: dynamo.parts[part] ?? 0 }));
}

/** The sentence that does the arithmetic, and what this race measured. */
function arithmeticOfSplit({ base, dynamo }, clocks) {
  const cost = dynamo.pass_ms / base.pass_ms;
  const passes = clocks.dynamo.tokensPerPass;
  const digits = digitsFor(base);
  const pass = `${dynamo.pass_ms.toFixed(digits)} against ${base.pass_ms.toFixed(digits)} ms`;
  return (
    `DynaMo's pass takes ${cost.toFixed(2)} times the base's (${pass}): ${passes.toFixed(2)} tokens per pass / ` +
    `${cost.toFixed(2)} = ${(passes / cost).toFixed(2)}×. This race measured ${clocks.speedUp.toFixed(2)}×.`
  );
}

/** Decimals of all milliseconds of a split. */
function digitsFor({ pass_ms }) {
  return pass_ms < 1 ? 3 : 2;
}

function drawSplit(split, clocks, engine) {
  const rows = rowsOfSplit(split);
  const sum = build("p", "dm-split-sum", arithmeticOfSplit(split, clocks));
  const opponent = opponentOf({ engine });
  const other = opponent !== OPPONENTS.loop;
  const note = other ? ` Its base is the base model in our own loop, not ${opponent[0]}.` : "";
  const source = build("p", "dm-split-note", SPLIT_SOURCE + note);
  return [sum, drawSplitBars(split, rows), drawSplitTable(split, rows), source];
}

function drawSplitBars(split, rows) {
  const longest = Math.max(split.base.pass_ms, split.dynamo.pass_ms);
  const bars = build("div", "dm-split-bars");
  bars.setAttribute("aria-hidden", "true");
  for (const lane of ["base", "dynamo"]) {
    const bar = build("div", "dm-split-bar");
    for (const [i, row] of rows.entries()) {
      const piece = build("i", `dm-split-part part-${i % PART_COLOURS}`);
      piece.style.width = `${(100 * Math.max(0, row[lane])) / longest}%`;
      bar.append(piece);
    }
    bars.append(build("span", "", lane === "base" ? "base" : "DynaMo"), bar);
  }
  return bars;
}

function drawSplitTable(split, rows) {
  const table = build("table", "dm-split-table");
  const digits = digitsFor(split.base);
  table.append(build("caption", "", "milliseconds per pass"), tableRow("th", ["", "base", "DynaMo"]));
  for (const [i, { part, base, dynamo }] of rows.entries()) {
    const row = tableRow("td", [part, base.toFixed(digits), dynamo.toFixed(digits)]);
    row.firstChild.prepend(build("i", `dm-split-part part-${i % PART_COLOURS}`));
    table.append(row);
  }
  const whole = [split.base.pass_ms, split.dynamo.pass_ms].map((value) => value.toFixed(digits));
  table.append(tableRow("td", ["whole pass", ...whole]));
  return table;
}

function tableRow(tag, texts) {
  const row = build("tr", "");
  row.append(...texts.map((text, i) => build(text && (i === 0 || tag === "th") ? "th" : "td", "", text)));
  for (const head of row.querySelectorAll("th")) head.scope = tag === "th" ? "col" : "row";
  return row;
}

function build(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
