// TokenPane: one lane of the chat.
//
// props.value is the lane's chat so far (NDJSON, see transcript.js). It only grows, so an update reads and draws
// what is new; any other value is another chat and is drawn afresh. The last run is the current one: the strip, the
// clocks and the playhead are about it, while the chunks of every turn can be looked at. On window.dynamoBus:
//   lane      this pane's run and how much of it is shown: once a frame as lines arrive, and at once after the
//             playhead, so that all that speaks of a pass changes in one frame    (pane -> all)
//   playhead  {milliseconds}: show what was done by then, null: all that arrived   (player -> panes)
//   show      look at this pass of this run                                        (pane -> inspector)
//   shown     the inspector shows this pass                                        (inspector -> pane)
//   widest    {milliseconds, passes}: what both strips' whole width stands for     (race -> panes)
//   strips    how wide the two strips are                                          (pane -> panes)
//   stop      the visitor stopped the run                                          (Stop button -> panes)

const root = element.querySelector(".dm-pane");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const side = root.dataset.side;
const part = (name) => root.querySelector(`.dm-${name}`);
const parts = {
  title: part("pane-title"),
  engine: part("pane-engine"),
  badge: part("badge"),
  text: part("text"),
  strip: part("strip"),
  footer: part("footer"),
  announce: part("announce"),
  buttons: [...root.querySelectorAll("[data-action]")],
};
const tip = createTip(root, part("tip"));
const sight = createSight(parts.text, () => tip.follow(parts.text));

const EMPTY = {
  base: "The base model's answer appears here, one token per forward pass.",
  dynamo: "DynaMo's answer appears here, one chunk of tokens per forward pass.",
};
const CROWD = 150; // passes; bars of more than these leave no room for gaps

let chat = newChat();
let turns = []; // what the DOM shows of chat.turns, see drawTurn()
let bars = []; // of the current turn
let count = 0; // passes of the current turn that are shown
let playhead = bus.playhead?.milliseconds ?? null;
let lookedAt = bus.shown ?? null; // {run, index} in the inspector
let marked = [];
let announced = ""; // the run whose end was announced
let frame = 0;

const current = () => chat.turns.at(-1);
const inspectable = () => side === "dynamo" && !isBlind(current());
const choose = (turn, index) => request(turn, index, true);
const choosing = connectChoosing(root, parts.text, tip, { turns: () => chat.turns, inspectable, choose });
const newest = () => ({ turn: current(), drawn: turns.at(-1), bars });
const preview = side === "dynamo" ? connectPreview(bus, newest, schedule) : () => "";
const openFork = (pass) => inspectable() && choose(current(), pass);
const markFork = connectFork(bus, side, newest, sight, openFork);

// ---- drawing what is new

function update() {
  cancelAnimationFrame(frame);
  frame = 0;
  const read = readChat(chat, typeof props.value === "string" ? props.value : "");
  if (read !== chat) clear();
  chat = read;
  for (let i = Math.max(0, turns.length - 1); i < chat.turns.length; i++) extend(i);
  extendStrip();
  movePlayhead();
  mark();
  markFork();
  keepInSight();
  publish();
}

function clear() {
  [turns, bars, marked, count] = [[], [], [], 0];
  choosing.reach(null);
  parts.text.replaceChildren();
  parts.strip.replaceChildren();
  parts.announce.textContent = "";
  tip.hide();
}

function extend(i) {
  const turn = chat.turns[i];
  if (i === turns.length) begin(turn);
  const drawn = turns[i];
  const role = inspectable() ? "button" : "listitem";
  const draw = isBlind(turn) ? drawPlain : (step) => drawPass(step, role);
  const pieces = turn.passes.slice(drawn.pieces.length).map(draw);
  if (playhead !== null) for (const piece of pieces) piece.hidden = true;
  else count += pieces.length;
  drawn.rest.before(...pieces);
  const chunk = drawn.pieces.length ? null : pieces[0]?.querySelector(".dm-chunk");
  if (chunk) openAnswer(drawn, chunk);
  drawn.pieces.push(...pieces);
  const last = turn.end?.end === "eos" && drawn.pieces.at(-1)?.querySelector(".dm-token:last-child[data-unseen='◦']");
  if (last) last.dataset.unseen = "end";
  drawn.rest.replaceChildren(...bidiNodes(turn.end?.text ?? ""));
  drawn.tally.replaceChildren(turn.end ? tallyOf(turn) : "");
}

/** The turn before becomes history, whole; clocks and strip start over. */
function begin(turn) {
  if (turns.length) {
    const settled = turns.at(-1);
    for (const piece of settled.pieces) piece.hidden = false;
    settled.rest.hidden = settled.tally.hidden = false;
  }
  turns.push(drawTurn(turn, turns.length));
  parts.text.append(turns.at(-1).root);
  parts.strip.replaceChildren();
  parts.announce.textContent = "";
  [bars, count] = [[], 0];
  sight.startOver();
}

/** The answer's first chunk: only now is there a list to speak of, and something for Tab to reach. */
function openAnswer(drawn, chunk) {
  drawn.answer.setAttribute("role", inspectable() ? "group" : "list");
  drawn.answer.setAttribute("aria-label", "Answer, pass by pass");
  if (!parts.text.contains(document.activeElement)) choosing.reach(chunk);
}

function extendStrip() {
  const turn = current();
  if (!turn || isBlind(turn)) return;
  const fresh = turn.passes.slice(bars.length).map(drawBar);
  if (playhead !== null) for (const bar of fresh) bar.hidden = true;
  bars.push(...fresh);
  parts.strip.append(...fresh);
}

/** Where a pass of a run is drawn, undefined where it is not shown. */
function chunkOf({ run, index }) {
  const piece = turns[chat.turns.findLastIndex((turn) => turn.header.run === run)]?.pieces[index];
  return piece && !piece.hidden ? piece.firstElementChild : undefined;
}

/** The text's end is in sight while it grows; at rest, the pass that the inspector shows. */
function keepInSight() {
  const resting = stateOf(current()) === "done" && playhead === null;
  sight.keep(resting && lookedAt ? chunkOf(lookedAt) : null);
}

// ---- the playhead: the same DOM, its later chunks hidden

function movePlayhead() {
  const turn = current();
  if (!turn) return false;
  const drawn = turns.at(-1);
  const [before, now] = [count, passesDone(turn, playhead)];
  for (let i = Math.min(before, now); i < Math.max(before, now); i++) {
    drawn.pieces[i].hidden = i >= now;
    if (bars[i]) bars[i].hidden = i >= now;
  }
  count = now;
  drawn.rest.hidden = drawn.tally.hidden = now < turn.passes.length;
  if (now !== before && playhead !== null && inspectable()) request(turn, Math.max(0, now - 1), false);
  return now !== before;
}

function onPlayhead(event) {
  if (playhead === null) sight.startOver(); // it is played again, and may have been read at any place
  playhead = event.detail.milliseconds;
  if (!movePlayhead()) return;
  keepInSight();
  publish();
}

// ---- what the rest of the page and a screen reader hear

function publish() {
  const turn = current();
  const state = stateOf(turn);
  root.dataset.state = state;
  parts.text.dataset.empty = EMPTY[side];
  parts.text.setAttribute("aria-busy", String(state === "running"));
  drawHead(turn, state);
  parts.footer.replaceChildren(...factsOf(turn, count).map((fact) => make("span", "", fact)));
  if (state === "done") sayFarewell(turn);
  const { header = null, passes = [], end = null } = turn ?? {};
  const detail = { kind: side, run: header?.run ?? null, header, state, end, passes, count, turns: chat.turns.length };
  (bus.lanes ??= {})[side] = detail; // kept, as `asked`, `playhead` and `shown` are, for scripts that begin later
  bus.dispatchEvent(new CustomEvent("lane", { detail }));
}

function drawHead(turn, state) {
  const [title, usual] = titlesOf(side, turn?.header);
  const engine = preview() || usual;
  if (parts.title.textContent !== title) parts.title.textContent = title;
  if (parts.engine.textContent !== engine) parts.engine.textContent = engine;
  root.setAttribute("aria-label", title);
  parts.text.setAttribute("aria-label", `${title}: chat`);
  parts.badge.hidden = engine === usual && !turn?.header.recorded;
  parts.badge.textContent = engine === usual ? "recording" : "preview, not decoded";
  parts.badge.title = turn?.header.recorded ?? "";
  for (const button of parts.buttons) {
    button.disabled = state !== "done" || !turn.passes.length;
    button.hidden = button.dataset.action === "trace" && isBlind(turn);
  }
}

/** Once per run, at its end; a recording ended long ago. */
function sayFarewell(turn) {
  if (turn.header.run === announced || turn.header.recorded) return;
  announced = turn.header.run;
  parts.announce.textContent = farewellOf(parts.title.textContent, turn);
}

// ---- the pass that is looked at

function request(turn, index, pinned) {
  const detail = { run: turn.header.run, index, pinned };
  if (!pinned) bus.asked = detail;
  bus.dispatchEvent(new CustomEvent("show", { detail }));
}

/** Outlines the pass that the inspector shows, once it is drawn here. */
function mark() {
  const bar = lookedAt && lookedAt.run === current()?.header.run ? bars[lookedAt.index] : null;
  const now = [lookedAt && chunkOf(lookedAt), bar].filter(Boolean);
  for (const old of marked) if (!now.includes(old)) old.classList.remove("selected");
  for (const one of now) one.classList.add("selected");
  marked = now;
}

// ---- the other parts of the page

bus.addEventListener("playhead", onPlayhead);
bus.addEventListener("widest", (event) => {
  root.style.setProperty("--span", event.detail.milliseconds);
  parts.strip.classList.toggle("crowded", event.detail.passes > CROWD);
});
new ResizeObserver(([{ contentRect }]) => {
  (bus.strips ??= {})[side] = contentRect.width;
  bus.dispatchEvent(new Event("strips"));
}).observe(parts.strip);
bus.addEventListener("strips", () => {
  const drawn = Object.values(bus.strips).filter(Boolean); // a narrow screen may have no room for one
  root.style.setProperty("--lane", drawn.length ? `${Math.min(...drawn)}px` : "100%");
});
bus.addEventListener("stop", () => {
  // Gradio cancels the run on the server, which can then send no end line.
  if (stateOf(current()) !== "running") return;
  current().end = { end: "cancelled" };
  schedule();
});
bus.addEventListener("show", ({ detail }) => {
  const chunk = detail.pinned && chunkOf(detail); // chosen elsewhere, by the timeline's keys say
  if (chunk) sight.bring(chunk);
});
bus.addEventListener("shown", (event) => {
  lookedAt = event.detail;
  mark();
  keepInSight();
});

// A hidden tab gets no animation frames, but its values still arrive.
function schedule() {
  if (document.visibilityState === "hidden") update();
  else if (!frame) frame = requestAnimationFrame(update);
}
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "hidden" && frame) update();
});
connectSaving(parts.buttons, current, parts.announce, server);
watch("value", schedule);
schedule();
