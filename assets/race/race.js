// RaceBar: both clocks of the race, always together, and its replay.
//
// props.value is one sentence of status. The clocks are read off the "lane" events of the two panes (see pane.js).
// A small model answers within a blink, so a finished race can be watched again at a pace the eye can follow: the
// recorded model time, stretched, with a note that says by how much. A visitor's first race is replayed unasked.

const root = element.querySelector(".dm-race");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-${name}`);
const replayButton = part("replay");

const NARROWEST_SCALE = 16; // passes: a strip of three bars should not fill its pane
const REPLAY_SECONDS_PER_PASS = 0.16;
const LONGEST_REPLAY_SECONDS = 14;
const A_BLINK = 2000; // milliseconds of model time that are too few to watch
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

const lanes = { base: null, dynamo: null };
let widest = 0;
let replay = null; // { started, slowdown, total, frame } while one is playing
let introduced = reducedMotion.matches;

function onLane(event) {
  lanes[event.detail.kind] = event.detail;
  if (event.detail.state === "running") stopReplay();
  shareScale();
  drawClocks();
  drawReplayButton();
  if (!introduced && finished()) introduce();
}

function introduce() {
  introduced = true;
  const ended = Object.values(lanes).every((lane) => lane.end === "eos" || lane.end === "length");
  if (ended && plan().total < A_BLINK) startReplay();
}

function shareScale() {
  const passes = Math.max(NARROWEST_SCALE, ...Object.values(lanes).map((lane) => lane?.passes.length ?? 0));
  if (passes === widest) return;
  widest = passes;
  bus.dispatchEvent(new CustomEvent("widest", { detail: widest }));
}

function drawClocks() {
  const base = lanes.base && laneClocks(lanes.base.passes, lanes.base.count);
  const dynamo = lanes.dynamo && laneClocks(lanes.dynamo.passes, lanes.dynamo.count);
  const bothDecode = Boolean(base?.tokensPerSecond && dynamo?.tokensPerSecond);
  root.dataset.measured = String(bothDecode);
  part("passes").textContent = bothDecode ? dynamo.tokensPerPass.toFixed(2) : "–";
  part("passes-note").textContent = bothDecode ? `base model ${base.tokensPerPass.toFixed(2)}` : "";
  part("speed").textContent = bothDecode ? `${(dynamo.tokensPerSecond / base.tokensPerSecond).toFixed(2)}×` : "–";
  part("speed-note").textContent = bothDecode
    ? `${dynamo.tokensPerSecond.toFixed(0)} against ${base.tokensPerSecond.toFixed(0)} tokens/s of model time`
    : "";
}

function drawStatus() {
  part("status").textContent = typeof props.value === "string" ? props.value : "";
}

// ---- replay

function finished() {
  const both = [lanes.base, lanes.dynamo];
  return both.every((lane) => lane?.end && lane.passes.length > 0 && lane.run === lanes.base.run);
}

function plan() {
  const total = Math.max(...Object.values(lanes).map((lane) => laneClocks(lane.passes).milliseconds));
  const passes = Math.max(...Object.values(lanes).map((lane) => lane.passes.length));
  const seconds = Math.min(LONGEST_REPLAY_SECONDS, passes * REPLAY_SECONDS_PER_PASS);
  return { total, slowdown: Math.max(1, (1000 * seconds) / total) };
}

function startReplay() {
  replay = { ...plan(), started: performance.now(), frame: requestAnimationFrame(tick) };
  drawReplayButton();
}

function tick(now) {
  const elapsed = (now - replay.started) / replay.slowdown;
  if (elapsed > replay.total) return stopReplay();
  bus.dispatchEvent(new CustomEvent("replay", { detail: Math.max(0, elapsed) }));
  replay.frame = requestAnimationFrame(tick);
}

function stopReplay() {
  if (!replay) return;
  cancelAnimationFrame(replay.frame);
  replay = null;
  bus.dispatchEvent(new CustomEvent("replay", { detail: null }));
  drawReplayButton();
}

function drawReplayButton() {
  replayButton.hidden = !finished();
  if (replayButton.hidden) return;
  const { slowdown, total } = replay ?? plan();
  const slow = slowdown > 1.5;
  const pace = slow ? `replayed ${slowdown.toFixed(0)}× slower` : "replayed at its own pace";
  replayButton.textContent = replay ? "Skip to the end" : slow ? "Replay in slow motion" : "Replay";
  part("pace").textContent = replay ? `It took ${(total / 1000).toFixed(2)} s; ${pace}.` : "";
}

replayButton.addEventListener("click", () => (replay ? stopReplay() : startReplay()));
bus.addEventListener("lane", onLane);
bus.addEventListener("stop", stopReplay);
watch("value", drawStatus);
drawStatus();
drawClocks();
