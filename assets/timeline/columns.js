// The back-off timeline's columns, as pure functions: what each pass of a run draws and says.
//
// A column is about the last order that its pass tried: that joint's largest value, before thresholds, against what
// it had to exceed. Values are drawn by their square root, so that the thresholds of small eps_b can be told apart.
// In exact mode nothing is backed off: a column is about drafts of the pass before, kept or rejected. An anchored
// chunk has no joint of its own to show.

const SCALE = [1, 0.5, 0.25, 0.1, 0.01, 0];

function heightOf(value) {
  return Math.sqrt(Math.max(0, Math.min(1, value)));
}

/**
 * {tokens, givenUp, order, best, bar}; givenUp: orders, or drafts in exact mode; order, best and bar are null there
 * and where the pass built no joint.
 */
function columnOf(step, threshold) {
  const givenUp = (step.rejected ?? step.backoffs ?? []).length;
  const column = { tokens: step.ids.length, givenUp, order: null, best: null, bar: null };
  const last = triesOf(step).at(-1);
  return last ? { ...column, order: last.order, best: last.best, bar: barOf(threshold, last.order) } : column;
}

// ---- in words

function countInWords(passes) {
  if (passes.some(isExact)) {
    const [kept, drafts] = draftsOf(passes);
    return `${plural(passes.length, "pass")}, ${kept} of ${plural(drafts, "draft")} kept`;
  }
  const backedOff = passes.filter((step) => step.backoffs?.length).length;
  return `${backedOff} of ${plural(passes.length, "pass")} backed off`;
}

/** Of the drafts that these passes verified: how many were kept, and how many there were. */
function draftsOf(passes) {
  const kept = passes.reduce((sum, step) => sum + step.ids.length - 1, 0);
  return [kept, kept + passes.reduce((sum, step) => sum + (step.rejected?.length ?? 0), 0)];
}

function exactPassInWords(step) {
  const [kept, drafts] = draftsOf([step]);
  const text = step.text.join("").trim();
  const own = drafts ? `It kept ${kept} of ${plural(drafts, "draft")} and drew 1 token itself` : "It drew 1 token itself";
  return `Pass ${step.pass + 1}: ${plural(step.ids.length, "token")}${text ? `, “${bidiIsolate(text)}”` : ""}. ${own}.`;
}

function passInWords(step, threshold) {
  if (isExact(step)) return exactPassInWords(step);
  const { tokens, order, best } = columnOf(step, threshold);
  const text = step.text.join("").trim();
  const cut = emittedOrder(step) > tokens ? ` of ${emittedOrder(step)}, as the answer ended` : "";
  const sentences = [`Pass ${step.pass + 1}: ${plural(tokens, "token")}${cut}${text ? `, “${bidiIsolate(text)}”` : ""}.`];
  const orders = (step.backoffs ?? []).map(([order]) => order).join(" and ");
  if (orders) sentences.push(`${backOffInWords(step.backoffs.at(-1), orders)}.`); // the column is about the last
  if (isGrown(step)) sentences.push("It drew its first token alone and grew from there.");
  else if (emittedOrder(step) > 1) sentences.push(`Best joint ${percent(best)} is above ${barInWords(threshold, order)}.`);
  else if (order === null) sentences.push("No joint was built.");
  return sentences.join(" ");
}

function whatIfInWords({ fewer, more }, count, threshold) {
  const changes = [fewer ? `${fewer} would emit fewer tokens` : "", more ? `${more} would emit more` : ""];
  const effect = changes.filter(Boolean).join(" and ") || "none would change";
  const at = `At threshold ${Number(threshold.toFixed(4))}`;
  return `${at}: of these ${plural(count, "pass")}, ${effect}, each after the same text.`;
}
