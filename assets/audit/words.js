// The drift audit in words: pure functions, no DOM.

const UNLIKELY = 0.01;
const FAINTEST = 1e-3; // the tint runs from probability 1 to this, logarithmically

/** 1 -> "1st", 12 -> "12th", 23 -> "23rd". */
function ordinal(number) {
  const teens = number % 100 > 10 && number % 100 < 14;
  return `${number}${teens ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[number % 10] ?? "th")}`;
}

/** How strongly a token is tinted: 0 for one that was certain, 1 at FAINTEST and below. */
function surpriseOf(p) {
  return p <= 0 ? 1 : Math.max(0, Math.min(1, Math.log10(p) / Math.log10(FAINTEST)));
}

/** A token that the base would hardly, or never, have sampled. rank 0 is its likeliest. */
function isOdd({ p, rank }, topK) {
  return p < UNLIKELY || rank >= topK;
}

/** Tokens without a text of their own: the last one ends the turn, others are a part of a character. */
function tokenName(tokens, at) {
  const text = tokens[at].text;
  if (text) return `“${bidiIsolate(text.trim()) || visible(text)}”`;
  return at === tokens.length - 1 ? "the end of the turn" : "a part of a character";
}

/** "the base gives it 31 %, its 1st choice" */
function opinionInWords({ p, rank }) {
  return `the base gives it ${percent(p)}, its ${ordinal(rank + 1)} choice`;
}

/** "“seven”: 0.4 %, its 12th choice" */
function oddInWords(tokens, at, topK) {
  const { p, rank } = tokens[at];
  const outside = rank >= topK ? `, outside its top ${topK}: it would never have sampled it` : "";
  return `${tokenName(tokens, at)}: ${percent(p)}, its ${ordinal(rank + 1)} choice${outside}`;
}

/** What the list of odd tokens is, or that there are none. */
function findingInWords(count, tokens, topK) {
  const limits = `below 1 % or outside the base's top ${topK}`;
  if (tokens === 0) return "There is no text to read.";
  if (count === 0) return `No token is ${limits}: the base could have written every one of them.`;
  return `${count} of ${plural(tokens, "token")} ${count === 1 ? "is" : "are"} ${limits}:`;
}

/** Rows of the table: [label, explanation, DynaMo, base lane]. */
function figureRows({ dynamo, base, top_k: topK }) {
  const share = (value) => percent(value ?? 0);
  const rows = [
    ["Nats per token", "how surprised the base is", ({ nats }) => nats.toFixed(2)],
    ["Below 1 %", "share of tokens", (lane) => share(lane.below_1_percent)],
    [`Outside the top ${topK}`, "share of tokens", (lane) => share(lane.outside_top_k)],
    ["Repetition", "4-grams seen before", (lane) => share(lane.repetition)],
    ["Tokens", "", ({ tokens }) => String(tokens)],
  ];
  const valueOf = (lane, say) => (lane && lane.tokens > 0 ? say(lane) : "–");
  return rows.map(([label, meaning, say]) => [label, meaning, valueOf(dynamo, say), valueOf(base, say)]);
}

const CAUTION =
  "Lower is not automatically better: thresholds cut off unlikely words, so a dull text scores well, often better " +
  "than the base's own. The share below 1 % is the better sign of drift: words that the base would hardly have written. " +
  "Probabilities are at temperature 1, over the whole vocabulary.";
