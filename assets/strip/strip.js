// The quality dial laid out: one prompt at several thresholds, a row each.
//
// props.value is NDJSON that grows row by row: {"threshold", "text": chunks of token texts, "passes", "tokens", "ms",
// "nats", "below"}; a first line {"thresholds": [..]} may announce them; the
// last line is {"done": true} or {"end": why}. Texts reach the page as textContent and in no other way.
//
// trigger("use", {threshold}) is a Gradio event of this component: `strip.use(listener)` in Python.

const root = element.querySelector(".dm-dial");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-dial-${name}`);
const body = root.querySelector("tbody");

let drawn = ""; // the value whose rows stand in the table
let strip = readStrip("");
let inUse = null; // threshold of the run in the panes

function onValue() {
  const text = typeof props.value === "string" ? props.value : "";
  if (!text.startsWith(drawn)) body.replaceChildren();
  drawn = text;
  strip = readStrip(text);
  draw();
}

function draw() {
  const empty = drawn === "";
  root.dataset.state = empty ? "empty" : strip.end ? "done" : "running";
  part("lead").textContent = empty ? LEAD : "";
  for (const row of strip.rows.slice(body.children.length)) body.append(rowOf(row));
  part("table").hidden = part("note").hidden = strip.rows.length === 0;
  drawProgress(empty);
  drawBars();
  markInUse();
}

function drawProgress(empty) {
  part("progress").hidden = empty || strip.end === "done";
  const [meter, words] = part("progress").children;
  meter.max = strip.thresholds?.length ?? THRESHOLDS;
  meter.value = strip.rows.length;
  meter.hidden = strip.end !== "";
  words.textContent = empty ? "" : progressInWords(strip);
}

function rowOf(row) {
  const line = document.createElement("tr");
  line.setAttribute("role", "row");
  const head = document.createElement("th");
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  head.textContent = row.threshold;
  line.append(head, ...measuresOf(row).map(measureCell), cell("dm-dial-text", textOf(row)), cell("dm-dial-use", useButton(row)));
  return line;
}

function cell(className, ...children) {
  const made = document.createElement("td");
  made.setAttribute("role", "cell");
  made.className = className;
  made.append(...children);
  return made;
}

function measureCell({ name, words }, i) {
  const [label, value, bar] = ["span", "span", "i"].map((tag) => document.createElement(tag));
  label.className = "dm-dial-label"; // the column's head, where there are no columns
  label.setAttribute("aria-hidden", "true");
  label.textContent = name;
  value.textContent = words;
  return cell(`dm-dial-measure measure-${i}`, label, value, bar);
}

/** The text as the panes draw it: a tint for each chunk of two tokens or three. */
function textOf(row) {
  const text = document.createElement("div");
  text.dir = "auto";
  for (const chunk of row.text) {
    const span = document.createElement("span");
    span.className = `dm-chunk size-${chunk.length}`;
    span.append(
      ...chunk.map((piece) => {
        const token = document.createElement("span");
        token.className = "dm-token";
        token.append(...bidiNodes(piece));
        return token;
      }),
    );
    text.append(span);
  }
  return text;
}

function useButton(row) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "dm-button";
  button.dataset.threshold = row.threshold;
  button.textContent = "Use this threshold";
  button.setAttribute("aria-label", `Use threshold ${row.threshold}`);
  return button;
}

/** Bars share a scale down each column, which a new row may widen. */
function drawBars() {
  const scales = scalesOf(strip.rows);
  strip.rows.forEach((row, at) => {
    measuresOf(row).forEach(({ value }, i) => {
      const bar = body.children[at].children[1 + i].lastElementChild;
      bar.style.setProperty("--share", (value ?? 0) / scales[i]);
    });
  });
}

function markInUse() {
  strip.rows.forEach((row, at) => {
    const same = row.threshold === inUse;
    body.children[at].classList.toggle("in-use", same);
    const button = body.children[at].querySelector("button");
    button.disabled = same;
    button.textContent = same ? "In use" : "Use this threshold";
  });
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-threshold]");
  if (button) trigger("use", { threshold: Number(button.dataset.threshold) });
});

bus.addEventListener("lane", ({ detail }) => {
  const threshold = detail.kind === "dynamo" ? detail.header?.options?.threshold : undefined;
  if (threshold === undefined || threshold === inUse) return;
  inUse = threshold;
  markInUse();
});
// Gradio cancels the strip on the server, which can then send no last line.
bus.addEventListener("stop", () => {
  if (root.dataset.state !== "running") return;
  strip.end = "cancelled";
  draw();
});
watch("value", onValue);
onValue();
