// The quality dial's rows in words: pure functions, no DOM.

const THRESHOLDS = 7; // rows of a full strip, where its first line does not say
const LEAD =
  "One click decodes this prompt at seven thresholds, from 0 (always three tokens) to 1 (always one), and lays " +
  "tokens per pass, quality and text side by side.";

/** NDJSON of a strip -> {rows, thresholds, end}: its complete lines; end is "", "done" or why it stopped. */
function readStrip(text) {
  const strip = { rows: [], thresholds: null, end: "" };
  for (const line of text.slice(0, text.lastIndexOf("\n") + 1).split("\n")) {
    if (!line) continue;
    const fields = JSON.parse(line);
    if ("threshold" in fields) strip.rows.push(fields);
    else if ("thresholds" in fields) strip.thresholds = fields.thresholds;
    else strip.end = fields.done ? "done" : (fields.end ?? strip.end);
  }
  return strip;
}

/** The measures of a row as {name, value, words}: value is what a bar is as long as, null where nothing was measured. */
function measuresOf(row) {
  const perPass = row.passes ? row.tokens / row.passes : null;
  return [
    { name: "Tokens per pass", value: perPass, words: perPass === null ? "–" : perPass.toFixed(2) },
    { name: "Nats per token", value: row.nats ?? null, words: row.nats === undefined ? "–" : row.nats.toFixed(2) },
    { name: "Below 1 %", value: row.below ?? null, words: row.below === undefined ? "–" : percent(row.below) },
  ];
}

/** What a full bar of each measure stands for, so that bars can be compared down a column. */
function scalesOf(rows) {
  const scales = [3, 0, 0.05]; // three tokens and 5 % always fit
  for (const row of rows) {
    measuresOf(row).forEach(({ value }, i) => (scales[i] = Math.max(scales[i], value ?? 0)));
  }
  return scales.map((scale) => scale || 1);
}

/** "3 of 7 thresholds done; decoding at 0.5 …" */
function progressInWords({ rows, thresholds, end }) {
  const total = thresholds?.length ?? THRESHOLDS;
  const done = `${rows.length} of ${total} thresholds done`;
  if (end === "done") return `${done}.`;
  if (end) return `Stopped: ${done}.`;
  const next = thresholds?.[rows.length];
  return next === undefined ? `${done}; decoding …` : `${done}; decoding at ${next} …`;
}
