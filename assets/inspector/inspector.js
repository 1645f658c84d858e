// JointInspector: what one pass decided on, in three stages.
//
// props.value is the newest pass as JSON: {run, pass, joint}, the last two being lines of the trace. Updates may be
// dropped; passes.js keeps what came by and asks the server for the rest. Two stages are as recorded, the third is
// computed here, so that the threshold slider answers at once. While the player holds the panes back, values are
// only kept, and the pass shown is the one that the panes ask for. All that is said of a pass is drawn with its grids, as
// often as there is time for those: the counters and the text may be further on by then.
//
// trigger("enlarge", {run, index}) is a Gradio event of this component: `inspector.enlarge(listener)` in Python.

const root = element.querySelector(".dm-inspector");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-${name}`);

const FRAME = 33; // milliseconds from one draw to the next, at least
const SHARE_OF_TIME = 1 / 2; // of the browser's time that drawing may take
const QUIET_FRAME = 500;
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

const cache = new PassCache((wanted) => server.get_passes(wanted));

let current = null; // the run that the panes are about
let newest = null; // the latest value
let shown = null;
let next = null; // what is shown as soon as there is time
let following = true;
let running = null; // {run, count} of the lane while it decodes

let held = false; // the player shows less than has arrived
let mode = "";
let played = null; // the latest pass that the panes asked for
let slider = null; // the threshold slider, once it was moved while this run was shown
let wanted = 0; // of several requests under way, only the last may draw
let nextDraw = 0;
let timer = 0;

const panel = createPanel(root, () => ({ view: shown, threshold: shown?.joint ? threshold() : null }));

// ---- which pass

function onValue() {
  if (typeof props.value !== "string" || props.value === "") return;
  newest = JSON.parse(props.value);
  cache.put(newest);
  startRun(newest.run);
  const early = running?.run === newest.run && newest.pass.pass >= running.count; // the panes draw it first
  if (following && !held && !early) show(newest);
}

function startRun(run) {
  if (run === current) return;
  current = run;
  following = true;
  slider = null;
  played = null;
  wanted += 1;
}

function onShow({ run, index, pinned }) {
  if (pinned) following = false;
  else {
    played = { run, index };
    if (mode === "step") following = true; // whoever steps wants to see the step
    if (!following) return;
  }
  lookUp(run, index, pinned);
}

async function lookUp(run, index, atOnce) {
  const request = ++wanted;
  const value = cache.known(run, index) ?? (await cache.find(run, index));
  if (request !== wanted) return;
  if (value) show(value, atOnce);
  else panel.sayLost();
}

function show(value, atOnce = false) {
  next = value;
  schedule(atOnce);
}

/** Draws now or as soon as drawing does not take more than its share of the time. */
function schedule(atOnce = false) {
  // No animation frame comes in a hidden tab.
  if (!atOnce && document.visibilityState !== "hidden") {
    timer ||= setTimeout(() => requestAnimationFrame(drawInTime), Math.max(0, nextDraw - performance.now()));
    return;
  }
  clearTimeout(timer);
  timer = 0;
  draw();
}

function drawInTime() {
  if (!timer) return; // it was drawn at once meanwhile
  timer = 0;
  const start = performance.now();
  draw();
  const frame = reducedMotion.matches ? QUIET_FRAME : FRAME;
  nextDraw = start + frame;
  // A task posted from a frame runs after that frame was laid out and painted, which costs more than the script.
  setTimeout(() => (nextDraw = start + Math.max(frame, (performance.now() - start) / SHARE_OF_TIME)));
}

function clear() {
  current = newest = shown = next = slider = played = null;
  following = true;
  wanted += 1;
  drawHead();
  panel.drawAtRest();
}

function step(offset) {
  if (!shown) return;
  const index = shown.pass.pass + offset;
  if (index < 0 || index >= cache.of(shown.run).total) return;
  bus.dispatchEvent(new CustomEvent("show", { detail: { run: shown.run, index, pinned: true } }));
}

function follow() {
  following = true;
  wanted += 1;
  if (held && played) lookUp(played.run, played.index, true);
  else if (newest) show(newest, true);
  drawHead();
}

// ---- drawing

function draw() {
  if (next && next !== shown) {
    if (mode === "teach" && !reducedMotion.matches) panel.dropIn();
    if (next.run !== shown?.run) slider = null; // what if is asked of the run before one's eyes
    shown = next;
  }
  if (next) drawPass();
  next = null;
  panel.drawJoint();
}

function drawPass() {
  const { run, pass } = shown;
  drawHead();
  drawWords();
  const detail = (bus.shown = { run, index: pass.pass }); // kept for scripts that begin later
  bus.dispatchEvent(new CustomEvent("shown", { detail }));
}

function drawWords() {
  const { total, completed } = cache.of(shown.run);
  panel.drawPass(Boolean(completed) && shown.pass.pass + 1 === total);
}

function drawHead() {
  const total = shown ? cache.of(shown.run).total : 0;
  if (shown) {
    const { pass, run } = shown;
    const earlier = run !== current && current ? " · an earlier answer" : "";
    say(part("title"), `Pass ${pass.pass + 1} of ${total}`);
    root.toggleAttribute("data-earlier", earlier !== "");
    say(part("subtitle"), `emitted ${plural(pass.ids.length, "token")}${earlier}`);
  }
  // Until the first pass of a new answer is there, what is shown is of the last one.
  root.toggleAttribute("data-waiting", Boolean(shown && current) && shown.run !== current && following);
  part("previous").disabled = !shown || shown.pass.pass === 0;
  part("next").disabled = !shown || shown.pass.pass + 1 >= total;
  part("enlarge").disabled = !shown?.joint;
  part("live").hidden = !shown || !(running || held);
  part("live").setAttribute("aria-pressed", String(following));
  say(part("live"), following ? "Following" : "Follow again");
}

/** What stage 3 is computed at. A chunk that was grown gives nothing to ask. */
function threshold() {
  const { pass, joint } = shown;
  return slider === null || isGrown(pass) ? joint.threshold : slider;
}

part("previous").addEventListener("click", () => step(-1));
part("next").addEventListener("click", () => step(1));
part("live").addEventListener("click", () => {
  if (!following) follow();
  else {
    following = false;
    next = null;
    drawHead();
  }
});
part("enlarge").addEventListener("click", () => trigger("enlarge", { run: shown.run, index: shown.pass.pass }));

// ---- the other parts of the page

function onLane({ kind, run, header, state, passes, count }) {
  if (kind !== "dynamo") return;
  running = state === "running" ? { run, count } : null;
  if (state === "empty" || header?.lane === "blind") {
    if (current) clear();
    return;
  }
  startRun(run);
  const known = cache.of(run);
  known.total = Math.max(known.total, passes.length);
  if (state === "done" && !known.completed) {
    known.completed = true;
    cache.complete(run);
    if (shown?.run === run) drawWords();
  }
  drawHead();
  // What the lane has reached, and in the end what came before the lane had got there.
  const reached = running ? cache.known(run, count - 1) : newest?.run === run ? newest : null;
  if (reached && following && !held && reached !== (next ?? shown)) show(reached);
}

function onPlayhead({ milliseconds }) {
  const before = held;
  held = milliseconds !== null;
  if (held && !before) following = true;
  if (before && !held && following && newest) show(newest);
  if (held !== before) drawHead();
}

bus.addEventListener("show", (event) => onShow(event.detail));
bus.addEventListener("lane", (event) => onLane(event.detail));
bus.addEventListener("playhead", (event) => onPlayhead(event.detail));
bus.addEventListener("player", ({ detail }) => (mode = detail.mode));
bus.addEventListener("threshold", (event) => {
  slider = event.detail;
  if (!shown?.joint) return;
  panel.drawVerdict();
  schedule(true);
});
drawHead();
panel.drawAtRest();
watch("value", onValue);
if (bus.player) mode = bus.player.mode;
if (bus.playhead) onPlayhead(bus.playhead);
onValue();
if (bus.lanes?.dynamo) onLane(bus.lanes.dynamo);
if (held && bus.asked) onShow(bus.asked);
