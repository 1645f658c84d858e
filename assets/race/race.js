// RaceBar: both clocks of the race, always together, and the player that decides which moment of it is on screen.
//
// props.value is one sentence of status. All else is read off the "lane" events of the two panes. The clocks are those
// of what is shown: while the player plays, up to its playhead. What is computed is in player.js (when), clocks.js
// (words) and split.js (where the time goes); this file owns the DOM, the frames and the bus.
//
// trigger("replaying"), ("rested"), ("linked"), ("ran") and ("going") are Gradio events of this component:
// `bar.replaying(..)` in Python. A run has ended: ("ran"); the visitor asks for something else: ("going").

const root = element.querySelector(".dm-race");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-${name}`);
const parts = Object.fromEntries(
  ["passes", "passes-note", "speed", "speed-name", "speed-note", "first", "first-note", "variety", "variety-note"]
    .concat(["drift", "drift-note", "drift-face"])
    .concat(["why", "split", "clock-row", "hidden-note", "player", "modes", "toggle", "skip", "step-on", "step-back", "laps", "pace", "tally"])
    .concat(["remark", "status", "share", "picture", "animation"])
    .map((name) => [name, part(name)]),
);
const laps = { base: part("lap-base").children, dynamo: part("lap-dynamo").children };

const NARROWEST_SCALE = 16; // passes of the base: a strip of three bars should not fill its pane
const SHORTEST_LAP = 24; // tokens that a lap has room for, while nobody knows how long it gets
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

const lanes = { base: null, dynamo: null };
const known = {}; // of each lane: its run, state and passes
let race = raceOf([]);
let player = newPlayer(reducedMotion.matches);
let runs = ""; // of the race on screen
let kind = ""; // of it, see begin()
let before = null; // the race that was on screen before it: {question, done, blind}
let sent = { playhead: null, widest: 0, player: "", fork: null };
bus.replaying = false; // whether a run that is over is still being shown: Stop has something to stop
let frame = 0;
let said = ""; // of the link that was copied, or opened in vain

const present = () => Object.values(lanes).filter((lane) => lane?.run && lane.state !== "empty");
const blind = () => present().some(isBlind);
const shown = () => (blind() ? [] : present());

// ---- what comes in

function onLane({ detail }) {
  const { kind: side, run, state, passes, end } = detail;
  lanes[side] = detail;
  const news = `${run} ${state} ${passes.length} ${end?.timed ?? ""}`; // a run that was timed again ends twice
  if (known[side] === news) return; // only the playhead moved, which the player itself did
  known[side] = news;
  race = raceOf(shown());
  tellFork();
  const now = performance.now();
  const key = present().map((lane) => lane.run).join(" ");
  if (key === runs) player = arrive(player, race, now);
  else {
    kind = kindOfRace();
    said = "";
    player = begin(player, race, kind, now);
    runs = key;
  }
  before = { question: questionOf(lanes.base), done: race.done && areComparable(lanes), blind: blind() };
  show();
}

/** Before `before` is overwritten: what sort of race the new runs make, see begin(). */
function kindOfRace() {
  if (before?.blind && race.done) return "aside"; // the vote is in, and the answers are read
  if (present().some((lane) => lane.header.recorded)) return "recording";
  // The lanes begin one after the other, and what was done before the first is not when the second does.
  const again = before?.question === questionOf(lanes.base) && (before.done || kind === "aside");
  return again ? "aside" : "live";
}

/** What tells an answer decoded again, at other settings, from another answer. */
function questionOf(lane) {
  return lane?.header ? JSON.stringify([lane.header.prompt, lane.header.options?.seed, lane.turns]) : "";
}

/** A race that the page's address holds is set up, once the page has settled which models it is about. */
async function openLink() {
  said = "";
  try {
    const lines = await linkedLines(location.hash);
    if (lines) trigger("linked", { lines });
  } catch (error) {
    said = error.message;
  }
  drawLines();
}

function act(next) {
  player = next;
  show();
}

function onFrame(now) {
  frame = 0;
  act(tick(player, race, now));
}

// ---- what goes out

function show() {
  tell("playhead", player.playhead, { milliseconds: player.playhead });
  const milliseconds = Math.max(race.total, NARROWEST_SCALE * (race.basePass ?? 0));
  tell("widest", milliseconds, { milliseconds, passes: Math.max(0, ...shown().map((lane) => lane.passes.length)) });
  const { mode, slowdown } = player;
  const detail = { playing: player.phase === "playing", mode, slowdown };
  tell("player", JSON.stringify(detail), detail);
  noteReplay(detail.playing && race.done);
  if (detail.playing && !frame) frame = requestAnimationFrame(onFrame);
  draw();
}

function noteReplay(replaying) {
  if (bus.replaying === replaying) return;
  bus.replaying = replaying;
  trigger(replaying ? "replaying" : "rested");
}

/** Dispatches once per change: what listens may well answer with a "lane" event. */
function tell(name, value, detail) {
  if (sent[name] === value) return;
  sent[name] = value;
  bus[name] = detail;
  bus.dispatchEvent(new CustomEvent(name, { detail }));
}

function tellFork() {
  const fork = forkOf(lanes);
  const runs = { base: lanes.base?.run, dynamo: lanes.dynamo?.run };
  tell("fork", fork && JSON.stringify([fork, runs]), fork && { ...fork, runs });
}

// ---- drawing

function put(name, text) {
  if (parts[name].textContent !== text) parts[name].textContent = text;
}

function draw() {
  root.dataset.phase = player.phase;
  for (const name of ["clock-row", "player"]) parts[name].hidden = blind();
  parts["hidden-note"].hidden = !blind();
  const counts = shownCounts();
  drawClocks(counts);
  drawPlayer();
  drawLaps(counts);
  drawLines(counts);
}

/** Passes of each lane that are on screen. */
function shownCounts() {
  return Object.fromEntries(shown().map((lane, i) => [lane.kind, doneBy(race.ends[i], player.playhead)]));
}

function drawClocks(counts) {
  const clocks = clocksOf(lanes, counts);
  root.dataset.measured = String(Boolean(clocks));
  const faces = facesOf(clocks, lanes, counts);
  put("passes", faces.passes);
  put("passes-note", faces.passesNote);
  put("speed", faces.speed);
  put("speed-name", faces.speedName);
  put("speed-note", faces.speedNote);
  put("first", faces.first);
  put("first-note", faces.firstNote);
  put("variety", faces.variety);
  put("variety-note", faces.varietyNote);
  parts.variety.parentElement.title = faces.varietyTitle;
  parts.speed.parentElement.parentElement.title = faces.speedTitle;
  drawDrift();
  drawWhy();
}

/** What the base thinks of the answer on screen, once it has read it; nobody reads a recording. */
function drawDrift() {
  parts["drift-face"].hidden = !Object.hasOwn(bus, "audit");
  const { run, header } = lanes.dynamo ?? {};
  const audit = run && player.playhead === null && bus.audit?.run === run ? bus.audit : null;
  const note = header?.recorded ? "after a live answer" : header && race.done && race.whole ? "the base reads it …" : "";
  const faces = driftOf(audit, note);
  put("drift", faces.drift);
  put("drift-note", faces.driftNote);
  parts["drift-face"].title = faces.driftTitle;
}

function drawPlayer() {
  const { phase, mode } = player;
  const stepping = mode === "step";
  for (const radio of parts.modes.querySelectorAll("input")) radio.checked = radio.value === mode;
  const labels = { settled: "Play again", paused: stepping ? "Start again" : "Play" };
  put("toggle", labels[phase] ?? (phase === "empty" ? "Play" : "Pause"));
  parts.toggle.disabled = phase === "empty";
  parts.skip.disabled = player.playhead === null;
  for (const name of ["share", "picture", "animation"]) parts[name].disabled = !sharable();
  parts["step-on"].hidden = parts["step-back"].hidden = !stepping;
  parts["step-on"].disabled = parts["step-back"].disabled = phase === "empty";
}

/** Who has gone further by the same moment of model time, up to as many tokens as the shorter answer has. */
function drawLaps(counts) {
  const clocks = shown().map((lane) => laneClocks(lane.passes, counts[lane.kind]));
  const tokens = (lane) => laneClocks(lane.passes).tokens;
  const arrived = Math.max(0, ...shown().map(tokens));
  const finished = shown().filter((lane) => lane.state === "done").map(tokens);
  const scale = finished.length ? Math.min(...finished) : Math.max(arrived, SHORTEST_LAP);
  for (const kind in laps) laps[kind][0].parentElement.hidden = !shown().some((lane) => lane.kind === kind);
  for (const [i, lane] of shown().entries()) {
    const [name, track, text] = laps[lane.kind];
    name.textContent = nameOf(lane);
    track.firstChild.style.width = scale ? `${Math.min(100, (100 * clocks[i].tokens) / scale)}%` : "0";
    const elapsed = Math.min(player.playhead ?? Infinity, race.ends[i].at(-1) ?? 0);
    text.textContent = `${plural(clocks[i].tokens, "token")} in ${stopwatch(elapsed)}`;
  }
  parts.laps.style.visibility = arrived ? "" : "hidden";
}

function drawLines(counts = shownCounts()) {
  const { base, dynamo } = lanes;
  put("pace", paceInWords(player, race, shown()));
  put("tally", counts.dynamo ? tallyInWords(dynamo.passes, counts.dynamo, player.phase === "settled") : "");
  const source = sourceInWords((dynamo ?? base)?.header);
  put("remark", source && player.phase === "settled" ? `${source} Press Generate for a live race.` : source);
  put("status", said || (typeof props.value === "string" ? props.value : ""));
}

/** Whether both lanes have answered the same message: anybody can be shown that. */
function sharable() {
  return race.done && race.whole && areComparable(lanes) && shown().length === 2;
}

/** The clocks where there is a ratio to explain. */
function measured() {
  const clocks = clocksOf(lanes, shownCounts());
  return clocks?.speedUp ? clocks : null;
}

// ---- the visitor

const drawWhy = connectWhy(
  parts.why,
  parts.split,
  async () => (server.get_split ? server.get_split() : null),
  () => ({ clocks: measured(), engine: lanes.base?.header?.engine, busy: !race.done }),
);

parts.modes.addEventListener("change", (event) => act(chooseMode(player, race, event.target.value, performance.now())));
parts.toggle.addEventListener("click", () => act(toggle(player, race, performance.now())));
parts.skip.addEventListener("click", () => {
  parts.toggle.focus(); // a disabled button would drop the focus
  act(settle(player, race));
});
parts["step-on"].addEventListener("click", () => act(stepBy(player, race, 1)));
parts["step-back"].addEventListener("click", () => act(stepBy(player, race, -1)));
parts.player.addEventListener("keydown", (event) => {
  const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!direction || !event.target.matches(".dm-step-on, .dm-step-back")) return;
  event.preventDefault();
  act(stepBy(player, race, direction));
});
parts.share.addEventListener("click", async () => {
  const { fragment, whole } = await linkOf(shown());
  const copied = await copyText(location.href.split("#")[0] + fragment);
  if (!copied) history.replaceState(null, "", fragment);
  said = copiedInWords(copied, whole, lanes.dynamo.turns);
  drawLines();
});
let saving = false; // an animation takes a while, and who clicks again wants it once
for (const [name, save] of [["picture", savePicture], ["animation", saveAnimation]]) {
  parts[name].addEventListener("click", async () => {
    if (saving) return;
    saving = true;
    await save(root, shown(), race, (words) => {
      said = words;
      drawLines();
    });
    saving = false;
  });
}
reducedMotion.addEventListener("change", () => act({ ...player, still: reducedMotion.matches }));
bus.addEventListener("lane", onLane);
bus.addEventListener("stop", () => act(halt(player)));
for (const name of ["ran", "going"]) bus.addEventListener(name, () => trigger(name));
watch("value", () => drawLines());
window.addEventListener("hashchange", openLink);
bus.addEventListener("audit", drawDrift);
bus.addEventListener("opened", openLink);
if (bus.opened) openLink();
for (const detail of Object.values(bus.lanes ?? {})) onLane({ detail });
show();
