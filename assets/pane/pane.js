// TokenPane: draws one lane of the race.
//
// props.value is that lane's trace so far (NDJSON): a header line, then one line per forward pass, then an end line.
// It only ever grows, so each update parses what is new. Model text reaches the page as textContent and in no other
// way. Panes, race bar and inspector talk over one EventTarget, window.dynamoBus:
//   lane    this pane's clocks and state, after every change   (pane -> race bar, inspector)
//   show    look at this pass of this run                      (pane -> inspector)
//   shown   the inspector shows this pass                      (inspector -> pane)
//   widest  the largest number of passes of the lanes          (race bar -> panes: strips share one scale)
//   replay, stop                                               (race bar, Stop button -> panes)

const root = element.querySelector(".dm-pane");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const kind = root.dataset.kind;
const inspectable = kind === "dynamo";
const parts = Object.fromEntries(
  ["text", "strip", "footer", "tip", "announce"].map((name) => [name, root.querySelector(`.dm-${name}`)]),
);

const END_NOTES = {
  length: "reached the length limit",
  stop: "stopped by the engine",
  cancelled: "stopped",
  error: "failed",
};

let drawn; // what the DOM shows, see reset()
let frame = 0;
let hiding = 0;
reset();

function reset() {
  drawn = { source: "", header: null, passes: [], end: null, upTo: null };
  parts.text.replaceChildren();
  parts.strip.replaceChildren();
  parts.footer.replaceChildren();
  parts.announce.textContent = "";
  hideTip();
}

// ---- reading the trace

function update() {
  frame = 0;
  const source = typeof props.value === "string" ? props.value : "";
  if (!source.startsWith(drawn.source) || source === "") reset();
  const complete = source.lastIndexOf("\n") + 1;
  const fresh = source.slice(drawn.source.length, complete);
  drawn.source = source.slice(0, complete);
  const follows = isAtBottom();
  for (const text of fresh.split("\n")) if (text) read(JSON.parse(text));
  if (follows) parts.text.scrollTop = parts.text.scrollHeight;
  publish();
}

function read(line) {
  if ("format" in line) drawn.header = line;
  else if ("pass" in line) addPass(line);
  else if ("end" in line) finish(line);
}

function addPass(step) {
  drawn.passes.push(step);
  parts.text.append(chunkOf(step));
  const bar = document.createElement("i");
  bar.className = `dm-bar ${chunkClasses(step)}`;
  bar.dataset.index = step.pass;
  parts.strip.append(bar);
}

function finish(end) {
  drawn.end = drawn.end ?? end;
  if (end.text) parts.text.append(end.text);
  const note = END_NOTES[end.end];
  const clocks = laneClocks(drawn.passes);
  parts.announce.textContent =
    `${root.dataset.title} ${note ?? "finished"}: ` +
    `${plural(clocks.tokens, "token")} in ${plural(clocks.passes, "forward pass")}.`;
}

function state() {
  if (!drawn.header) return "empty";
  if (drawn.upTo !== null) return "replay";
  return drawn.end ? "done" : "running";
}

function publish() {
  root.dataset.state = state();
  parts.text.setAttribute("aria-busy", String(state() === "running"));
  drawFooter();
  const run = drawn.header?.run ?? null;
  const detail = { kind, run, state: state(), end: drawn.end?.end ?? null, header: drawn.header };
  bus.dispatchEvent(new CustomEvent("lane", { detail: { ...detail, passes: drawn.passes, count: shownCount() } }));
}

// ---- drawing

function chunkClasses(step) {
  const classes = [`size-${step.ids.length}`];
  if (step.backoffs?.length) classes.push("backed-off");
  return classes.join(" ");
}

function chunkOf(step) {
  const chunk = document.createElement("span");
  chunk.className = `dm-chunk ${chunkClasses(step)}`;
  chunk.dataset.index = step.pass;
  chunk.tabIndex = step.pass === 0 ? 0 : -1;
  chunk.setAttribute("role", inspectable ? "button" : "listitem");
  chunk.setAttribute("aria-label", chunkInWords(step));
  step.text.forEach((piece) => {
    const token = document.createElement("span");
    token.className = "dm-token";
    token.textContent = piece;
    chunk.append(token);
  });
  return chunk;
}

function chunkInWords(step) {
  const backOff = step.backoffs?.length && step.ids.length === 1 ? ", backed off" : "";
  return `Pass ${step.pass + 1}, ${plural(step.ids.length, "token")}${backOff}: ${step.text.join("").trim()}`;
}

function drawFooter() {
  const clocks = laneClocks(drawn.passes, shownCount());
  const facts = [];
  if (clocks.passes > 0) {
    facts.push(`${plural(clocks.tokens, "token")} in ${plural(clocks.passes, "pass")}`);
    facts.push(`${clocks.tokensPerPass.toFixed(2)} tokens/pass`);
    if (clocks.tokensPerSecond) facts.push(`${clocks.tokensPerSecond.toFixed(0)} tok/s of model time`);
    facts.push(`first token ${Number(clocks.firstToken.toPrecision(2))} ms`);
  }
  if (drawn.end && drawn.upTo === null && END_NOTES[drawn.end.end]) facts.push(END_NOTES[drawn.end.end]);
  parts.footer.replaceChildren(
    ...facts.map((fact) => {
      const item = document.createElement("span");
      item.textContent = fact;
      return item;
    }),
  );
}

function isAtBottom() {
  return parts.text.scrollHeight - parts.text.scrollTop - parts.text.clientHeight < 24;
}

// ---- replay: the same DOM, its later chunks hidden

function shownCount() {
  return drawn.upTo ?? drawn.passes.length;
}

/** Shows the passes that fit into the first `milliseconds` of model time; null shows all of them. */
function showUpTo(milliseconds) {
  const before = shownCount();
  let count = null;
  if (milliseconds !== null) {
    let elapsed = 0;
    count = drawn.passes.findIndex((step) => (elapsed += step.ms) > milliseconds);
    if (count < 0) count = drawn.passes.length;
  }
  if (count === drawn.upTo) return;
  drawn.upTo = count;
  for (const step of drawn.passes) {
    const hidden = count !== null && step.pass >= count;
    parts.text.children[step.pass].hidden = hidden;
    parts.strip.children[step.pass].hidden = hidden;
  }
  publish();
  if (inspectable && count !== null && count > before) request(count - 1, false);
}

// ---- tooltip: on hover and on focus; the pointer may rest on it, Escape closes it

function showTip(index) {
  const step = drawn.passes[index];
  const anchor = parts.text.children[index];
  if (!step || !anchor) return;
  clearTimeout(hiding);
  parts.tip.replaceChildren(...tipLines(step));
  parts.tip.hidden = false;
  const box = root.getBoundingClientRect();
  const at = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const left = Math.min(at.left - box.left, box.width - parts.tip.offsetWidth - 8);
  parts.tip.style.left = `${Math.max(8, left)}px`;
  parts.tip.style.top = `${at.bottom - box.top + 2}px`;
}

function tipLines(step) {
  const title = line("dm-tip-title", `Pass ${step.pass + 1} · ${plural(step.ids.length, "token")} · ${step.ms} ms`);
  const tokens = step.text.map((piece, i) => {
    const row = line("dm-tip-token", "");
    const text = document.createElement("code");
    text.textContent = visible(piece) || tokenWithoutText(step, i);
    const probability = document.createElement("span");
    probability.textContent = step.p[i] === undefined ? "" : percent(step.p[i]);
    row.append(text, probability);
    return row;
  });
  const reasons = (step.backoffs ?? []).map((backOff) => line("dm-tip-note", backOffInWords(backOff)));
  const hint = inspectable ? [line("dm-tip-hint", "Click to look at this pass below")] : [];
  return [title, ...tokens, ...reasons, ...hint];
}

/** A token with no text of its own ends the turn, or is a part of a character that a later token completes. */
function tokenWithoutText(step, i) {
  const last = step.pass === drawn.passes.length - 1 && i === step.ids.length - 1;
  return last && drawn.end?.end === "eos" ? "end of turn" : "part of a character";
}

function line(className, text) {
  const element = document.createElement("div");
  element.className = className;
  element.textContent = text;
  return element;
}

function hideTip() {
  clearTimeout(hiding);
  parts.tip.hidden = true;
}

function hideTipSoon() {
  clearTimeout(hiding);
  hiding = setTimeout(hideTip, 140);
}

// ---- choosing a pass

function indexOf(event) {
  const target = event.target.closest?.(".dm-chunk, .dm-bar");
  return target && root.contains(target) ? Number(target.dataset.index) : -1;
}

function request(index, pinned) {
  bus.dispatchEvent(new CustomEvent("show", { detail: { run: drawn.header.run, index, pinned } }));
}

function mark(index) {
  for (const list of [parts.text, parts.strip]) {
    list.querySelector(".selected")?.classList.remove("selected");
    list.children[index]?.classList.add("selected");
  }
}

function moveFocus(from, to) {
  const target = parts.text.children[Math.max(0, Math.min(shownCount() - 1, to))];
  parts.text.children[from].tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

function onKey(event) {
  if (event.key === "Escape") hideTip();
  const index = indexOf(event);
  if (index < 0) return;
  const targets = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: drawn.passes.length - 1 };
  if (event.key in targets) moveFocus(index, targets[event.key]);
  else if (inspectable && (event.key === "Enter" || event.key === " ")) request(index, true);
  else return;
  event.preventDefault();
}

root.addEventListener("mouseover", (event) => {
  const index = indexOf(event);
  if (index >= 0) showTip(index);
  else if (event.target.closest(".dm-tip")) clearTimeout(hiding);
  else hideTipSoon();
});
root.addEventListener("mouseleave", hideTipSoon);
root.addEventListener("focusin", (event) => {
  const index = indexOf(event);
  if (index >= 0) showTip(index);
});
root.addEventListener("focusout", hideTipSoon);
root.addEventListener("keydown", onKey);
root.addEventListener("click", (event) => {
  const index = indexOf(event);
  if (index >= 0 && inspectable) request(index, true);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});

// ---- the other parts of the page

bus.addEventListener("widest", (event) => root.style.setProperty("--passes", event.detail));
bus.addEventListener("replay", (event) => {
  if (drawn.end) showUpTo(event.detail);
});
bus.addEventListener("stop", () => {
  // Gradio cancels the run on the server, which can then send no end line.
  if (state() === "running") {
    finish({ end: "cancelled" });
    publish();
  }
});
if (inspectable) {
  bus.addEventListener("shown", (event) => mark(event.detail.run === drawn.header?.run ? event.detail.index : -1));
}

// A hidden tab gets no animation frames, but its values still arrive.
function schedule() {
  if (document.visibilityState === "hidden") update();
  else if (!frame) frame = requestAnimationFrame(update);
}
watch("value", schedule);
schedule();
