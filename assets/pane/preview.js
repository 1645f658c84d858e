// The threshold dial while it is dragged: the recorded chunks as that threshold would have cut them, before anything is
// decoded again. The chunks themselves stay, and so do their places in the text.

/**
 * look: () => {turn, drawn, bars}: the current run and its elements; redraw: called when another threshold is asked
 * about. Returns what to call after each change of the pane: it draws, and returns what the pane says of it, "" where
 * its chunks are those decoded.
 */
function connectPreview(bus, look, redraw) {
  let asked = null;
  let turn = null; // that this was asked of
  let last = null; // the run that is drawn otherwise, as `look` gave it
  let said = { words: "" }; // {turn, passes, asked, words}: what it was said of, as this is called with every step

  bus.addEventListener("threshold", ({ detail }) => {
    asked = typeof detail === "number" ? detail : null;
    redraw();
  });

  return () => {
    const now = look();
    if (now.turn !== turn) [turn, asked] = [now.turn, null];
    const passes = turn?.passes.length;
    if (said.turn !== turn || said.passes !== passes || said.asked !== asked) {
      said = { turn, passes, asked, words: draw(now) };
    }
    return said.words;
  };

  function draw(now) {
    const differs = Boolean(now.turn) && canAsk(now.turn.passes, now.turn.header.options.threshold, asked);
    if (last && (last.turn !== now.turn || !differs)) drawPasses(last, null);
    last = differs ? now : null;
    if (!differs) return "";
    const other = whatIf(now.turn.passes, asked);
    drawPasses(now, other);
    return previewInWords(other, asked);
  }
}

function drawPasses({ turn, drawn, bars }, other) {
  for (const [i, step] of turn.passes.entries()) {
    const order = other?.changes[i] ? other.orders[i] : null;
    for (const mark of [drawn.pieces[i]?.firstElementChild, bars[i]]) if (mark) drawAs(mark, step, order);
  }
}

/** A chunk or a bar as its pass would look if it had emitted `order` tokens, null: as it did. */
function drawAs(mark, step, order) {
  const emitted = emittedOrder(step);
  const fewer = order !== null && order < emitted;
  const size = fewer ? Math.min(order, step.ids.length) : step.ids.length;
  const names = [...mark.classList].filter((name) => !name.startsWith("size-"));
  mark.className = [...names, `size-${size}`].join(" ");
  mark.classList.toggle("fewer", fewer);
  mark.classList.toggle("more", order !== null && order > emitted);
  mark.classList.toggle("backed-off", fewer || Boolean(step.backoffs?.length));
  for (const [i, token] of [...mark.children].entries()) token.classList.toggle("cut", i >= size);
}

function previewInWords({ fewer, more }, threshold) {
  const effect = fewer ? "faded tokens would wait" : more ? "dashed passes would emit more" : "no pass would change";
  return `ε ${Number(threshold.toFixed(2))}: ${effect}`;
}
