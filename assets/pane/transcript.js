// One lane's chat, read from its NDJSON, and what the pane says about it. No DOM: the tests call these functions.
//
// A chat is {source, turns}. A turn is one run: {header, passes, ends, end, lines}, where ends[i] is the model time,
// in milliseconds, at which pass i was done, and lines are the run's own lines as they came.

const TITLES = {
  loop: ["Base model", "one token per pass"],
  generate: ["Base model", "one token per pass, transformers generate"],
  "threshold-1": ["DynaMo at threshold 1", "same weights, one token per pass"],
  dynamo: ["DynaMo", "one to three tokens per pass"],
};

const END_NOTES = {
  length: "reached the length limit",
  stop: "stopped by the engine",
  cancelled: "stopped",
  error: "failed",
};

// Sums of the same numbers may differ in their last bits.
const SAME_MOMENT = 1e-6;

function newChat() {
  return { source: "", turns: [] };
}

/** Reads what `source` has beyond the lines already read; a source that does not go on from them is another chat. */
function readChat(chat, source) {
  const read = source.startsWith(chat.source) ? chat : newChat();
  const complete = source.lastIndexOf("\n") + 1;
  const fresh = source.slice(read.source.length, complete);
  read.source = source.slice(0, complete);
  for (const text of fresh.split("\n")) if (text) readLine(read, text);
  return read;
}

function readLine(chat, text) {
  const line = JSON.parse(text);
  if ("format" in line) {
    const before = chat.turns.at(-1);
    if (before) before.end ??= { end: "cancelled" };
    chat.turns.push({ header: line, passes: [], ends: [], end: null, lines: [text] });
    return;
  }
  const turn = chat.turns.at(-1);
  turn.lines.push(text);
  if ("pass" in line) {
    turn.ends.push((turn.ends.at(-1) ?? 0) + line.ms);
    turn.passes.push(line);
  } else if ("end" in line) turn.end = line;
}

/** How many passes are done after `milliseconds` of model time; null is the end of time. */
function passesDone(turn, milliseconds) {
  if (milliseconds === null) return turn.ends.length;
  const next = turn.ends.findIndex((end) => end > milliseconds + SAME_MOMENT);
  return next < 0 ? turn.ends.length : next;
}

function stateOf(turn) {
  if (!turn) return "empty";
  return turn.end ? "done" : "running";
}

function isBlind(turn) {
  return turn?.header.lane === "blind";
}

// ---- in words

/** The pane's title and what stands under it; without a header, those of the side's usual engine. */
function titlesOf(side, header) {
  if (header?.lane === "blind") return [side === "dynamo" ? "Right" : "Left", "which model this is: after your vote"];
  const usual = side === "dynamo" ? "dynamo" : "loop";
  return TITLES[Object.hasOwn(TITLES, header?.engine ?? "") ? header.engine : usual];
}

/** Why a run ended, where that is worth a word. */
function endNote(end) {
  const note = END_NOTES[end?.end] ?? "";
  return note && end.message ? `${note}: ${bidiIsolate(end.message)}` : note;
}

function tokensInPasses(clocks, pass = "pass") {
  return `${plural(clocks.tokens, "token")} in ${plural(clocks.passes, pass)}`;
}

/** The line under a settled answer. */
function tallyOf(turn) {
  const counts = isBlind(turn) ? "" : tokensInPasses(laneClocks(turn.passes));
  return [counts, endNote(turn.end)].filter(Boolean).join(", ");
}

/** What a screen reader says once, when a run is over. */
function farewellOf(title, turn) {
  if (isBlind(turn)) return `${title} is ready.`;
  return `${title} ${endNote(turn.end) || "finished"}: ${tokensInPasses(laneClocks(turn.passes), "forward pass")}.`;
}

/** The clocks under the text, over the first `count` passes. */
function factsOf(turn, count) {
  if (!turn || isBlind(turn)) return [];
  const clocks = laneClocks(turn.passes, count, turn.end);
  const facts = [];
  if (clocks.passes > 0) {
    facts.push(tokensInPasses(clocks));
    facts.push(`first token ${Number(clocks.firstToken.toPrecision(2))} ms`);
    if (clocks.tokensPerSecond) facts.push(`${clocks.tokensPerSecond.toFixed(0)} tok/s (model time)`);
    facts.push(`${clocks.tokensPerPass.toFixed(2)} tokens/pass`);
  }
  if (count === turn.passes.length && endNote(turn.end)) facts.push(END_NOTES[turn.end.end]);
  return facts;
}

function chunkInWords(step) {
  const backOff = step.backoffs?.length && step.ids.length === 1 ? ", backed off" : "";
  return `Pass ${step.pass + 1}, ${plural(step.ids.length, "token")}${backOff}: ${step.text.join("").trim()}`;
}

/** A token with no text of its own ends the turn, or is a part of a character that a later token completes. */
function tokenWithoutText(turn, step, i) {
  const last = step.pass === turn.passes.length - 1 && i === step.ids.length - 1;
  return last && turn.end?.end === "eos" ? "end of turn" : "part of a character";
}

// ---- to take away

function textOf(turn) {
  return (turn.passes.flatMap((step) => step.text).join("") + (turn.end?.text ?? "")).trim();
}

/** The turn's own lines, closed: a run that was stopped here never got its end line. */
function traceOf(turn) {
  const closed = turn.lines.some((text) => text.startsWith('{"end"'));
  return [...turn.lines, ...(closed || !turn.end ? [] : [JSON.stringify(turn.end)])].join("\n") + "\n";
}

function fileName(header, extension) {
  const plain = (text) => text.replace(/[^\w-]/g, "").slice(0, 8);
  return `dynamo-${plain(header.lane)}-${plain(header.run)}.${extension}`;
}
