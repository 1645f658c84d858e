// BackOffTimeline: every pass of the DynaMo lane's current run as a column, while it is generated and after.
//
// It has no value of its own: the "lane" events carry the passes and how many of them are shown, so the player moves
// this too. A click asks the inspector for the pass; the threshold slider draws what other thresholds would ask for.

const root = element.querySelector(".dm-timeline");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-${name}`);
const parts = Object.fromEntries(
  ["columns", "timeline-scroll", "timeline-scale", "timeline-count", "timeline-lead", "timeline-readout"]
    .concat(["timeline-whatif", "timeline-plot", "timeline-key", "timeline-title"])
    .map((name) => [name.replace("timeline-", ""), part(name)]),
);

const LEAD = "The mark is the model's best guess; the bar is what it had to beat. Below the bar: back off.";
const EXACT_LEAD =
  "Exact mode: the higher the mark, the more tokens the pass made final: drafts of the pass before and one of its own. " +
  "Below the line: drafts that it rejected.";
const EMPTY = "Every forward pass of DynaMo's answer will appear here: what it was sure of, and what it gave up.";
const HINT = "Point at a column to read it; click to look inside.";
const HIGHEST_MARK = 4; // tokens of a pass in exact mode, which has no probability to stand at
const NEAR_THE_END = 24; // pixels: nearer than this, the newest column is kept in sight

let lane = null; // the detail of DynaMo's last "lane" event
let columns = []; // its buttons
let count = 0; // of them shown
let lookedAt = bus.shown ?? null; // {run, index} in the inspector
let pointed = -1;
let cursor = -1; // the column that Tab reaches
let asked = null; // the slider's threshold while it differs from the run's

const threshold = () => lane.header.options.threshold;

// ---- drawing

function onLane({ detail }) {
  if (detail.kind !== "dynamo") return;
  const another = detail.run !== lane?.run || detail.passes.length < columns.length;
  lane = detail;
  if (another) clear();
  root.hidden = lane.header?.lane === "blind";
  if (lane.run === null || root.hidden) return drawWords();
  const follows = isInView(columns[count - 1]);
  for (const step of lane.passes.slice(columns.length)) addColumn(step);
  showFirst(lane.count);
  drawWhatIf();
  drawWords();
  if (follows) bringIntoView(columns[count - 1]);
}

function clear() {
  [columns, count, pointed, cursor, asked] = [[], 0, -1, -1, null];
  parts.columns.replaceChildren();
}

function beyondView(column) {
  return column.offsetLeft + column.offsetWidth - parts.scroll.scrollLeft - parts.scroll.clientWidth;
}

function isInView(column) {
  return !column || beyondView(column) < NEAR_THE_END;
}

function bringIntoView(column) {
  if (column) parts.scroll.scrollLeft = Math.max(0, parts.scroll.scrollLeft + beyondView(column));
}

function addColumn(step) {
  const { tokens, givenUp, best, bar } = columnOf(step, threshold());
  const column = document.createElement("button");
  column.type = "button";
  column.className = `dm-column size-${tokens}`;
  column.dataset.index = step.pass;
  column.tabIndex = -1;
  column.style.visibility = "hidden";
  column.setAttribute("aria-label", passInWords(step, threshold()));
  if (best !== null) {
    column.style.setProperty("--value", heightOf(best).toFixed(4));
    column.style.setProperty("--bar", heightOf(bar).toFixed(4));
    column.append(piece("stem"), piece("if"), piece("bar"));
  }
  if (isGrown(step)) column.style.setProperty("--value", Math.min(1, tokens / HIGHEST_MARK));
  column.append(piece(best === null && !isGrown(step) ? "none" : `mark size-${tokens}${givenUp ? "" : " sure"}`));
  for (let i = 0; i < givenUp; i++) column.append(piece("given-up"));
  columns.push(column);
  parts.columns.append(column);
}

function piece(name) {
  const made = document.createElement("i");
  made.className = `dm-tl-${name}`;
  return made;
}

/** Columns that are still to come keep their place. */
function showFirst(number) {
  for (let i = Math.min(count, number); i < Math.max(count, number); i++) {
    columns[i].style.visibility = i < number ? "" : "hidden";
  }
  count = number;
  if (cursor < 0 && count > 0) moveCursor(0);
  mark();
}

function mark() {
  const index = lane && lookedAt?.run === lane.run ? lookedAt.index : -1;
  for (const column of columns) {
    if (Number(column.dataset.index) === index) column.setAttribute("aria-current", "true");
    else column.removeAttribute("aria-current");
  }
  drawReadout();
}

function drawWords() {
  const passes = lane?.passes.slice(0, count) ?? [];
  const any = columns.length > 0;
  for (const name of ["plot", "key", "readout", "whatif"]) parts[name].hidden = !any;
  const exact = Boolean(lane?.passes.some(isExact));
  root.toggleAttribute("data-exact", exact); // the page's other words follow these two: see stage_parts.css
  root.toggleAttribute("data-lossy", any && !exact);
  parts.title.textContent = any ? (exact ? "Draft timeline" : "Back-off timeline") : "Timeline";
  root.setAttribute("aria-label", parts.title.textContent);
  parts.lead.textContent = any ? (exact ? EXACT_LEAD : LEAD) : EMPTY;
  parts.count.textContent = passes.length ? countInWords(passes) : "";
  parts.columns.setAttribute("role", "toolbar");
  parts.columns.setAttribute("aria-label", passes.length ? `DynaMo: ${countInWords(passes)}` : "DynaMo: no passes yet");
  drawReadout();
}

function drawReadout() {
  const inspected = lookedAt && lookedAt.run === lane?.run ? lookedAt.index : -1;
  const step = lane?.passes[pointed >= 0 ? pointed : inspected];
  const visible = step && step.pass < count;
  parts.readout.textContent = visible ? passInWords(step, threshold()) : HINT;
}

// ---- the slider

function drawWhatIf() {
  const differs = Boolean(lane?.header) && canAsk(lane.passes, threshold(), asked);
  root.toggleAttribute("data-whatif", differs);
  parts.whatif.textContent = "";
  if (!differs) return columns.forEach((column) => column.classList.remove("fewer", "more"));
  const other = whatIf(lane.passes.slice(0, count), asked);
  parts.whatif.textContent = whatIfInWords(other, count, asked);
  for (const [i, step] of lane.passes.entries()) {
    const { order } = columnOf(step, asked);
    if (order !== null) columns[i].style.setProperty("--if", heightOf(barOf(asked, order)).toFixed(4));
    columns[i].classList.toggle("fewer", other.changes[i] < 0);
    columns[i].classList.toggle("more", other.changes[i] > 0);
  }
}

// ---- the visitor

function indexOf(event) {
  const column = event.target.closest?.(".dm-column");
  return column ? Number(column.dataset.index) : -1;
}

function point(index) {
  pointed = index;
  drawReadout();
}

function moveCursor(index) {
  if (columns[cursor]) columns[cursor].tabIndex = -1;
  cursor = Math.max(0, Math.min(count - 1, index));
  columns[cursor].tabIndex = 0;
}

parts.columns.addEventListener("mouseover", (event) => point(indexOf(event)));
parts.columns.addEventListener("mouseleave", () => point(-1));
parts.columns.addEventListener("focusin", (event) => {
  moveCursor(indexOf(event));
  point(indexOf(event));
});
parts.columns.addEventListener("focusout", () => point(-1));
parts.columns.addEventListener("keydown", (event) => {
  const at = indexOf(event);
  const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: count - 1 }[event.key];
  if (at < 0 || target === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  columns[Math.max(0, Math.min(count - 1, target))].focus();
});
parts.columns.addEventListener("click", (event) => {
  const index = indexOf(event);
  if (index >= 0) bus.dispatchEvent(new CustomEvent("show", { detail: { run: lane.run, index, pinned: true } }));
});

// ---- the other parts of the page

bus.addEventListener("lane", onLane);
bus.addEventListener("shown", ({ detail }) => {
  lookedAt = detail;
  mark();
});
bus.addEventListener("threshold", ({ detail }) => {
  asked = typeof detail === "number" ? detail : null;
  drawWhatIf();
});

for (const value of SCALE) {
  const label = document.createElement("span");
  label.style.setProperty("--value", heightOf(value).toFixed(4));
  label.textContent = percent(value);
  parts.scale.append(label);
}
drawWords();
if (bus.lanes?.dynamo) onLane({ detail: bus.lanes.dynamo });
