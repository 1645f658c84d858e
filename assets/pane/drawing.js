// What a pane is made of: elements from lines, without state. Text of models and visitors enters as textContent.

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...bidiNodes(text));
  return made;
}

/** One turn: what was asked, the answer that grows, the line under it. */
function drawTurn(turn, number) {
  const drawn = {
    root: make("div", "dm-turn"),
    answer: make("div", "dm-answer"),
    rest: make("span", "dm-rest"),
    tally: make("p", "dm-tally"),
    pieces: [], // one per pass, see drawPass
  };
  const asked = make("div", "dm-asked", turn.header.prompt);
  asked.dir = drawn.answer.dir = "auto";
  asked.setAttribute("role", "group");
  asked.setAttribute("aria-label", "You");
  drawn.root.dataset.turn = number;
  drawn.answer.append(drawn.rest);
  drawn.root.append(asked, drawn.answer, drawn.tally);
  return drawn;
}

function chunkClasses(step) {
  const classes = [`size-${step.ids.length}`];
  if (step.backoffs?.length) classes.push("backed-off");
  if (!step.text.join("")) classes.push("silent");
  return classes.join(" ");
}

/** A pass in the text: its chunk, and before it the space or line break that parts it from the chunk before. */
function drawPass(step, role) {
  const text = step.text.join("");
  const lead = text.trim() ? text.slice(0, text.length - text.trimStart().length) : "";
  const piece = make("span", "dm-piece", lead);
  piece.append(drawChunk(step, role, lead.length));
  return piece;
}

function drawChunk(step, role, skip) {
  const chunk = make("span", `dm-chunk ${chunkClasses(step)}`);
  chunk.dataset.index = step.pass;
  chunk.tabIndex = -1;
  chunk.setAttribute("role", role);
  chunk.setAttribute("aria-label", chunkInWords(step));
  let before = 0;
  for (const text of step.text) {
    const token = make("span", "dm-token", text.slice(Math.max(0, skip - before)));
    if (!text.trim()) token.dataset.unseen = text ? visible(text) : "◦";
    chunk.append(token);
    before += text.length;
  }
  return chunk;
}

/** A whole answer that does not show its passes. */
function drawPlain(step) {
  return make("span", "dm-piece dm-plain", step.text.join("").trimStart());
}

function drawBar(step) {
  const bar = make("i", `dm-bar ${chunkClasses(step)}`);
  bar.dataset.index = step.pass;
  bar.style.setProperty("--ms", step.ms);
  return bar;
}

function drawTip(turn, step, hint) {
  const title = `Pass ${step.pass + 1} · ${plural(step.ids.length, "token")} · ${step.ms} ms`;
  const tokens = step.text.map((piece, i) => {
    const row = make("div", "dm-tip-token");
    const probability = step.p[i] === undefined ? "" : percent(step.p[i]);
    row.append(
      make("code", piece ? "" : "silent", visible(piece) || tokenWithoutText(turn, step, i)),
      make("span", "", probability),
    );
    return row;
  });
  const reasons = (step.backoffs ?? []).map((backOff) => make("div", "dm-tip-note", backOffInWords(backOff)));
  return [make("div", "dm-tip-title", title), ...tokens, ...reasons, ...(hint ? [make("div", "dm-tip-hint", hint)] : [])];
}

/** The chunk that a key leads to, among those shown in `box`; undefined where there is none. */
function neighbourOf(chunk, key, box) {
  const shown = [...box.querySelectorAll(".dm-piece:not([hidden]) > .dm-chunk")];
  const own = shown.filter((one) => one.closest(".dm-turn") === chunk.closest(".dm-turn"));
  const at = shown.indexOf(chunk);
  return { ArrowRight: shown[at + 1], ArrowLeft: shown[at - 1], Home: own[0], End: own.at(-1) }[key];
}
