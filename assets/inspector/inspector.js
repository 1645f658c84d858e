// JointInspector: what one pass decided on, in three stages.
//
// props.value is the newest pass as JSON: {run, pass, joint}, the last two being lines of the trace. Updates may be
// dropped: older passes are kept here as they go by, and what was missed is asked of the server by run and index.
// The first two stages are as recorded; the third is computed here, so that the threshold slider answers at once.
// Token texts reach the page as textContent and in no other way. For the events on the bus see pane.js.

const root = element.querySelector(".dm-inspector");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-${name}`);

const SIZE = 10;
const DARKEST = 1e-4; // the colour scale runs over this to 1, logarithmically
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

const stages = ["product", "mask", "threshold"].map((name) => buildTable(part(`stage-${name}`)));

let run = null;
let passes = new Map(); // index -> {run, pass, joint}
let newest = null;
let shown = null;
let following = true;
let total = 0; // passes of the run so far, as the pane counts them
let playing = ""; // what there is to follow: "live", "replay" or ""
let slider = null; // the threshold slider, once it was moved
let wanted = 0; // of several requests under way, only the last may draw
let lastDraw = 0;
let timer = 0;

// ---- which pass

function onValue() {
  if (typeof props.value !== "string" || props.value === "") return;
  const value = JSON.parse(props.value);
  if (value.run !== run) startRun(value.run);
  passes.set(value.pass.pass, value);
  newest = value;
  if (following) show(value);
}

function startRun(name) {
  run = name;
  passes = new Map();
  following = true;
  wanted += 1;
}

async function onShow(event) {
  const { index, pinned } = event.detail;
  if (pinned) following = false;
  else if (!following) return; // a replay goes on behind a pinned pass
  const request = ++wanted;
  const value = await passAt(event.detail.run, index);
  if (request !== wanted) return;
  if (value) show(value, pinned);
  else note("This pass is no longer stored. Generate again to look inside it.");
}

async function passAt(ofRun, index) {
  if (ofRun === run && passes.has(index)) return passes.get(index);
  const text = await server.get_pass([ofRun, index]).catch(() => null);
  if (!text) return null;
  const value = JSON.parse(text);
  if (value.run === run) passes.set(index, value);
  return value;
}

function show(value, atOnce = false) {
  shown = value;
  const interval = reducedMotion.matches ? 500 : 90;
  const wait = atOnce || document.visibilityState === "hidden" ? 0 : interval - (performance.now() - lastDraw);
  if (wait <= 0) {
    clearTimeout(timer);
    timer = 0;
    requestAnimationFrameOrNow(draw);
  } else if (!timer) {
    timer = setTimeout(draw, wait);
  }
}

function requestAnimationFrameOrNow(callback) {
  if (document.visibilityState === "hidden") callback();
  else requestAnimationFrame(callback);
}

function step(offset) {
  if (!shown) return;
  const index = shown.pass.pass + offset;
  if (index < 0 || index >= total) return;
  bus.dispatchEvent(new CustomEvent("show", { detail: { run: shown.run, index, pinned: true } }));
}

function pin() {
  following = false;
  drawHeader();
}

function resume() {
  following = true;
  wanted += 1;
  if (newest) show(newest, true);
  drawHeader();
}

// ---- drawing

function draw() {
  timer = 0;
  lastDraw = performance.now();
  if (!shown) return;
  shown.unpacked = shown.unpacked ?? (shown.joint && unpackJoint(shown.joint));
  root.dataset.state = shown.joint ? "joint" : "single";
  drawHeader();
  drawStages();
  drawNotes();
  drawThird();
  bus.dispatchEvent(new CustomEvent("shown", { detail: { run: shown.run, index: shown.pass.pass } }));
}

function drawHeader() {
  if (shown) {
    const { pass, joint } = shown;
    const lastTry = joint && pass.backoffs?.length > 1 ? ` · shown: its last try, ${joint.order} tokens` : "";
    part("title").textContent = `Pass ${pass.pass + 1} of ${Math.max(total, pass.pass + 1)}`;
    part("subtitle").textContent = `emitted ${plural(pass.ids.length, "token")}${lastTry}`;
  }
  part("previous").disabled = !shown || shown.pass.pass === 0;
  part("next").disabled = !shown || shown.pass.pass + 1 >= total;
  part("live").hidden = !shown || (following && !playing);
  part("live").setAttribute("aria-pressed", String(following));
  part("live").textContent = `${following ? "Following" : playing ? "Resume" : "Unpin"} ${playing}`.trim();
}

function threshold() {
  return slider ?? shown.joint.threshold;
}

function drawStages() {
  const { joint, unpacked } = shown;
  if (!joint) {
    for (const stage of stages) clearStage(stage);
    part("threshold-caption").textContent = "";
    return;
  }
  const after = applyThreshold(unpacked, joint, threshold());
  const picked = pickedCell(joint);
  [unpacked.product, unpacked.masked, after.grid].forEach((grid, i) => drawStage(stages[i], joint, grid, picked));
  const summed = joint.order > 2 ? ", summed over the third token" : "";
  part("product-caption").textContent = "each head's own guess, multiplied";
  part("mask-caption").textContent = `pairs never seen together removed, the rest reweighted${summed}`;
  part("threshold-caption").textContent =
    `only ${joint.order === 2 ? "pairs" : "whole chunks"} above ${barInWords(threshold(), joint.order)} stay`;
}

function pickedCell(joint) {
  const [row, column] = joint.picked;
  const inside = row < joint.p[0].length && column < joint.p[1].length;
  return inside ? row * joint.p[1].length + column : -1;
}

function drawStage(stage, joint, grid, picked) {
  stage.rows.forEach((label, i) => (label.textContent = visible(joint.text[0][i] ?? "")));
  stage.columns.forEach((label, i) => (label.textContent = visible(joint.text[1][i] ?? "")));
  const width = joint.p[1].length;
  stage.cells.forEach((cell, at) => {
    const column = at % SIZE;
    const row = (at - column) / SIZE;
    const index = row * width + column;
    const value = column < width ? (grid[index] ?? 0) : 0;
    cell.style.setProperty("--heat", heat(value).toFixed(3));
    cell.classList.toggle("gone", value <= 0);
    cell.classList.toggle("picked", index === picked && column < width);
  });
}

function clearStage(stage) {
  for (const label of [...stage.rows, ...stage.columns]) label.textContent = "";
  for (const cell of stage.cells) cell.className = "dm-cell gone";
}

function heat(value) {
  return value <= 0 ? 0 : Math.max(0, Math.min(1, 1 - Math.log10(value) / Math.log10(DARKEST)));
}

function drawNotes() {
  const { pass, joint } = shown;
  const notes = [];
  if (!joint) notes.push(["", "This pass built no joint distribution: a single token was asked for."]);
  if (pass.kept !== undefined) notes.push(["", `The mask kept ${percent(pass.kept)} of the product.`]);
  if (joint) notes.push(...outcome(pass, joint));
  for (const backOff of pass.backoffs ?? []) notes.push(["dm-note-backoff", backOffInWords(backOff)]);
  part("notes").replaceChildren(...notes.map(([className, text]) => paragraph(className, text)));
}

/** What stage 3 leaves, as it was or as it would be at the slider's threshold. */
function outcome(pass, joint) {
  const after = applyThreshold(shown.unpacked, joint, threshold());
  const count = `${after.exact ? "" : "at least "}${plural(after.kept, joint.order === 2 ? "pair" : "chunk")}`;
  const beyond = after.outside ? `, ${after.outside} of them beyond the ten candidates shown` : "";
  if (slider !== null && Math.abs(slider - joint.threshold) > 1e-9) {
    const at = `What if ε were ${slider} (this run: ${joint.threshold})`;
    const decision = after.kept > 0 ? `emit ${joint.order} tokens` : `back off from ${joint.order}`;
    const result = `${count} above ${barInWords(slider, joint.order)}${beyond}; by this rule alone the pass would ${decision}`;
    return [["dm-note-whatif", `${at}: ${result}.`]];
  }
  if (joint.picked.length === 0) return [];
  const hiddenPair = pickedCell(joint) < 0 ? " It lies beyond the ten candidates shown." : "";
  const said = `“${pass.text.join("").trim()}”`;
  return [["", `${count} above ${barInWords(joint.threshold, joint.order)}${beyond}; ${said} was sampled.${hiddenPair}`]];
}

function drawThird() {
  const { pass, joint } = shown;
  const third = joint?.third ?? [];
  part("third").hidden = third.length === 0;
  if (third.length === 0) return;
  const [row, column] = joint.picked.length >= 2 ? pass.text : ["the best", "pair"];
  part("third-title").textContent = `Third token, given “${visible(row)} ${visible(column)}”`;
  part("third-list").replaceChildren(
    ...third.map(([text, share]) => {
      const item = document.createElement("li");
      item.classList.toggle("picked", joint.picked.length > 2 && text === pass.text[2]);
      item.style.setProperty("--share", share);
      for (const [tag, content] of [["code", visible(text)], ["i", ""], ["span", percent(share)]]) {
        const child = document.createElement(tag);
        child.textContent = content;
        item.append(child);
      }
      return item;
    }),
  );
}

function paragraph(className, text) {
  const element = document.createElement("p");
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function note(text) {
  part("notes").replaceChildren(paragraph("", text));
}

// ---- the tables: built once, read with pointer or arrow keys

function buildTable(figure) {
  const table = figure.querySelector("table");
  const head = table.createTHead().insertRow();
  head.append(document.createElement("td"));
  const columns = Array.from({ length: SIZE }, () => heading(head, "col"));
  const body = table.createTBody();
  const rows = [];
  const cells = [];
  for (let i = 0; i < SIZE; i++) {
    const row = body.insertRow();
    rows.push(heading(row, "row"));
    for (let j = 0; j < SIZE; j++) {
      const cell = row.insertCell();
      cell.className = "dm-cell gone";
      cell.dataset.at = cells.length;
      cell.tabIndex = cells.length === 0 ? 0 : -1;
      cells.push(cell);
    }
  }
  return { rows, columns, cells };
}

function heading(row, scope) {
  const cell = document.createElement("th");
  cell.scope = scope;
  const label = document.createElement("span");
  cell.append(label);
  row.append(cell);
  return label;
}

function readCell(cell, politely) {
  if (!cell || !shown?.joint) return;
  const at = Number(cell.dataset.at);
  const { joint, unpacked } = shown;
  const width = joint.p[1].length;
  const row = Math.floor(at / SIZE);
  const column = at % SIZE;
  if (row >= joint.p[0].length || column >= width) return;
  const index = row * width + column;
  const left = applyThreshold(unpacked, joint, threshold()).grid[index];
  const text = [
    `${visible(joint.text[0][row])} + ${visible(joint.text[1][column])}`,
    `product ${percent(unpacked.product[index])}`,
    unpacked.masked[index] > 0 ? `after the mask ${percent(unpacked.masked[index])}` : "removed by the mask",
    unpacked.masked[index] > 0 ? (left > 0 ? `share of what is left ${percent(left)}` : "below the threshold") : "",
  ];
  part("readout").setAttribute("aria-live", politely ? "polite" : "off");
  part("readout").textContent = text.filter(Boolean).join("  →  ");
  root.querySelectorAll(".dm-cell.read").forEach((other) => other.classList.remove("read"));
  for (const stage of stages) stage.cells[at].classList.add("read");
}

function onCellKey(event) {
  const cell = event.target.closest(".dm-cell");
  const offset = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: SIZE, ArrowUp: -SIZE }[event.key];
  if (!cell || !offset) return;
  event.preventDefault();
  const cells = stages.find((stage) => stage.cells.includes(cell)).cells;
  const at = Number(cell.dataset.at);
  const sideways = Math.abs(offset) === 1 && Math.floor(at / SIZE) !== Math.floor((at + offset) / SIZE);
  const target = cells[at + offset];
  if (!target || sideways) return;
  cell.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

root.addEventListener("mouseover", (event) => readCell(event.target.closest(".dm-cell"), false));
root.addEventListener("click", (event) => readCell(event.target.closest(".dm-cell"), false));
root.addEventListener("focusin", (event) => readCell(event.target.closest(".dm-cell"), true));
root.addEventListener("keydown", onCellKey);

part("previous").addEventListener("click", () => step(-1));
part("next").addEventListener("click", () => step(1));
part("live").addEventListener("click", () => (following ? pin() : resume()));

// ---- the other parts of the page

bus.addEventListener("show", onShow);
bus.addEventListener("threshold", (event) => {
  slider = event.detail;
  if (shown?.joint) draw();
});
bus.addEventListener("lane", (event) => {
  if (event.detail.kind !== "dynamo") return;
  const next = { running: "live", replay: "replay" }[event.detail.state] ?? "";
  if (next === "replay" && playing !== "replay") following = true;
  playing = next;
  total = event.detail.passes.length;
  drawHeader();
});
watch("value", onValue);
onValue();
