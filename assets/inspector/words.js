// What one pass did, and what it would have done at another threshold, in words: pure functions, no DOM.

/** What is done in each stage. */
function stageCaptions(pass, joint, threshold, unmasked) {
  const stay = `keeps ${chunkWord(joint.order)}s above ${barInWords(threshold, joint.order)}`;
  return [
    "each head's own guess, multiplied",
    correctionCaption(joint, unmasked),
    isExact(pass)
      ? `drawn from the row of “${lastOf(pass)}”`
      : isGrown(pass)
        ? "the row of the token drawn first"
        : stay,
  ];
}

/** What the second stage is called: only the table's is a mask. */
function correctionTitle(correction) {
  return { correlator: "Given the first", smoothed: "Smoothed counts" }[correction] ?? "Mask";
}

function correctionCaption({ correction }, unmasked) {
  if (correction === "correlator") return "each row: what follows that token";
  if (correction === "smoothed") return "weighted by how often they follow";
  return unmasked ? "off: drops nothing" : "drops pairs never seen together";
}

/** The three grids' own results, one line each; `after` is `applyThreshold`'s. */
function stageResults(pass, joint, unpacked, after) {
  const kept = pass.kept === undefined || joint.correction ? "" : `${percent(pass.kept)} kept; `;
  return [
    likeliestInWords(joint, unpacked.product),
    kept + likeliestInWords(joint, unpacked.masked),
    isExact(pass)
      ? `${plural(pass.drafted?.length ?? 0, "token")} drafted${isOutside(joint) ? ", not among those shown" : ""}`
      : isGrown(pass)
        ? ""
        : leftInWords(joint, after),
  ];
}

function likeliestInWords(joint, grid) {
  const [rows, columns] = joint.text;
  const at = grid.indexOf(Math.max(...grid));
  if (!(grid[at] > 0)) return "no pair of the candidates shown is left";
  const pair = rows[Math.floor(at / columns.length)] + columns[at % columns.length];
  return `likeliest pair: “${visible(pair)}” ${percent(grid[at])}`;
}

function leftInWords(joint, after) {
  if (after.kept === 0) return `no ${chunkWord(joint.order)} is left: back off`;
  const count = `${after.exact ? "" : "at least "}${plural(after.kept, chunkWord(joint.order))}`;
  const beyond = after.outside ? `, ${after.outside} beyond the candidates shown` : "";
  return `${count} left to draw from${beyond}${isOutside(joint) ? "; the one drawn is there" : ""}`;
}

/** Whether a pair was drawn that the tables have no cell for. */
function isOutside({ picked, text }) {
  return picked.length > 1 && (picked[0] >= text[0].length || picked[1] >= text[1].length);
}

function chunkWord(order) {
  return order === 2 ? "pair" : "chunk";
}

/** What the third token's candidates are given: the pair that was drawn, by whichever name is known. */
function thirdTitle(pass, joint) {
  if (joint.picked.length < 2) return "Third token, given the best pair";
  const pair = joint.picked.slice(0, 2).map((rank, head) => joint.text[head][rank] ?? namedByPass(pass, joint, head));
  return `Third token, given “${visible(pair.join(""))}”`;
}

function namedByPass(pass, joint, head) {
  return isExact(pass) ? " …" : pass.text[head];
}

const DRAFT_RULE = "A draft is kept with chance p / q: its probability under the base, p, against the draft's own, q.";
const SINGLE = "It built no joint distribution: single tokens were asked for, or the text ended.";
const NOT_RECORDED = "Its joint distribution was not recorded.";

/** How many tokens the pass came to and why: [phrase, reason]. */
function verdictInWords(pass, joint) {
  if (isExact(pass)) return exactInWords(pass);
  if (isGrown(pass)) return anchoredInWords(pass);
  if (!joint) return [`This pass emitted ${plural(pass.ids.length, "token")}.`, hadJoint(pass) ? NOT_RECORDED : SINGLE];
  const tries = triesOf(pass, joint);
  const order = emittedOrder(pass);
  if (order === 1) return ["This pass backed off to 1 token.", refusalInWords(tries, joint.threshold)];
  const cut = order > pass.ids.length ? " The text ends inside it." : "";
  const count = plural(pass.ids.length, "token");
  const phrase = tries.length > 1 ? `backed off from ${tries[0].order} tokens and emitted ${count}` : `emitted ${count}`;
  return [`This pass ${phrase}.`, passageInWords(tries, order, joint.threshold) + cut];
}

/** The anchored draw: how far the chunk grew, and what ended it. */
function anchoredInWords(pass) {
  const count = plural(pass.ids.length, "token");
  const phrase = `This pass drew its first token alone and ${pass.ids.length > 1 ? `grew to ${count}` : "kept to it"}.`;
  const [ended] = pass.backoffs ?? [];
  return [phrase, ended ? `${backOffInWords(ended)}.` : "Every head gave a token."];
}

/** The token that a pass emitted last, which its drafts go on from. */
function lastOf(pass) {
  return visible(pass.text.at(-1));
}

/** What the grids of exact mode are about: not this pass's own tokens. */
function draftsForNextInWords(pass) {
  return `Drafts for the next pass, after “${lastOf(pass)}”:`;
}

/** Whether a pass that comes without its joint had one. */
function hadJoint(pass) {
  return pass.drafted?.length > 0 || pass.kept !== undefined || pass.best !== undefined || pass.backoffs?.length > 0;
}

/** Where the grids would stand. last: the answer is known to end with this pass. */
function noJointInWords(pass, last) {
  if (hadJoint(pass)) return NOT_RECORDED;
  if (!isExact(pass)) return "No joint distribution, so nothing to picture.";
  return `${last ? "The answer ended here: no" : "No"} drafts, so nothing to picture.`;
}

/** Exact mode: what became of the drafts of the pass before, and what this one drafts. */
function exactInWords(pass) {
  const kept = pass.ids.length - 1;
  const verified = kept + (pass.rejected?.length ?? 0);
  const phrase = verified
    ? `This pass had ${plural(verified, "draft")} to verify, kept ${kept} and drew 1 token itself.`
    : "This pass had no drafts to verify and drew 1 token itself.";
  if (pass.rejected?.length) return [phrase, rejectionInWords(pass)];
  const drafts = pass.drafted?.length ?? 0;
  return [phrase, drafts ? `It drafts ${plural(drafts, "token")} for the next pass to verify.` : "It drafts nothing."];
}

/** Why a draft was rejected; older records do not hold its probabilities. */
function rejectionInWords({ rejected, refused }) {
  if (!refused) return DRAFT_RULE;
  const [p, q] = refused;
  const [first, behind] = rejected.map((text) => `“${visible(text)}”`);
  const chance = `${first} had ${percent(q)} as a draft, ${percent(p)} under the base: kept with a chance of ${percent(p / q)}, and the draw went against it.`;
  return behind ? `${chance} ${behind} fell with it.` : chance;
}

/** What the pass would have come to at the slider's threshold, after the same text: [phrase, reason]. */
function whatIfInWords(pass, joint, threshold) {
  const tries = triesOf(pass, joint);
  const emitted = emittedOrder(pass);
  const { order, certain } = decisionAt(tries, threshold);
  const phrases = [
    [!certain, `have backed off from ${emitted} tokens`],
    [order < emitted, `have backed off to ${plural(order, "token")}`],
    [order > emitted, `have emitted ${plural(order, "token")} instead of ${emitted}`],
    [order === 1, "still have backed off to 1 token"],
    [true, `still have emitted ${plural(order, "token")}`],
  ];
  const [, phrase] = phrases.find(([holds]) => holds);
  const through = certain && order > 1;
  const reason = through ? passageInWords(tries, order, threshold) : refusalInWords(tries, threshold);
  return [`At threshold ${Number(threshold.toFixed(4))} this pass would ${phrase}.`, reason];
}

function refusalInWords(tries, threshold) {
  const { order, best, reason, atMost } = tries[tries.length - 1];
  if (reason === "mask") return `None of the candidate ${chunkWord(order)}s occurs in the training text.`;
  if (reason === "kept_mass") return "Too little of the product survived the mask.";
  const after = reason === "penalty" ? " after the repetition penalty" : "";
  return `Its best ${chunkWord(order)} has ${atMost ? "at most " : ""}${percent(best)}${after}, not above ${barInWords(threshold, order)}.`;
}

function passageInWords(tries, order, threshold) {
  const { best } = tries.find((attempt) => attempt.order === order);
  return `Its best ${chunkWord(order)} has ${percent(best)}, above ${barInWords(threshold, order)}.`;
}

/**
 * One line for every number of tokens the pass could emit: {order, best, bar, reason, verdict}. best is null where
 * no joint of that order was looked at; bar is null for a single token, which needs none.
 */
function ladderOf(pass, joint, threshold) {
  const tries = triesOf(pass, joint);
  if (tries.length === 0) return [];
  const decision = decisionAt(tries, threshold);
  const lines = [];
  for (let order = tries[0].order; order >= 1; order--) {
    const attempt = tries.find((candidate) => candidate.order === order);
    lines.push({
      order,
      best: attempt?.best ?? null,
      atMost: attempt?.atMost ?? false,
      bar: order > 1 ? barOf(threshold, order) : null,
      reason: attempt?.reason ?? "",
      verdict: rungVerdict(order, attempt, decision),
    });
  }
  return lines;
}

function rungVerdict(order, attempt, decision) {
  if (order === decision.order) return decision.certain ? "emitted" : "tried next";
  if (order < decision.order) return decision.certain ? "not needed" : "";
  return attempt ? "backed off" : "not tried";
}

/** What a line of the ladder says of its values. */
function rungInWords({ order, best, bar, reason, verdict, atMost }) {
  if (order === 1) return verdict === "emitted" ? "always possible" : "";
  if (best === null) return `bar ${percent(bar)}`;
  if (reason === "mask") return "never seen in training";
  if (reason === "kept_mass") return "too little survived the mask";
  return `${atMost ? "at most " : ""}${percent(best)} ${best > bar ? ">" : "≤"} ${percent(bar)}`;
}
