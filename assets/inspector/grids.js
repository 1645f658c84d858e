// The three stages as tables of ten by ten cells: built once, then only what changed is touched; read with the
// pointer or the arrow keys. Token texts reach the page as textContent and in no other way.

const SIZE = 10;
const DARKEST = 1e-4; // the colour scale runs over this to 1, logarithmically
const GONE = -1;

// The idea of each stage, for a page on which nothing has run yet: heats of four by four cells.
const SKETCHES = [
  [1, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.25, 0.6, 0.4, 0.25, 0.1, 0.4, 0.25, 0.1, 0],
  [0.9, GONE, 0.5, GONE, GONE, 0.85, GONE, GONE, GONE, 0.4, GONE, 0.2, GONE, GONE, 0.15, GONE],
  [1, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE, GONE],
];

const LESSON = [
  "Each head of the model guesses a token for its own place. Multiplied, every pair gets a value.",
  "Heads do not know of each other, so nonsense scores too. Pairs never seen together in training go.",
  "What is above the threshold ε is drawn from and emitted whole. Nothing left: back off to fewer tokens.",
];
function buildGrid(figure, stage) {
  figure.querySelector("table").before(sketch(SKETCHES[stage], stage === 2 ? 0 : -1));
  const table = figure.querySelector("table");
  const head = table.createTHead().insertRow();
  head.append(axes());
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
  const parts = ["figcaption b", "figcaption span", ".dm-stage-result"];
  const [title, caption, result] = parts.map((part) => figure.querySelector(part));
  return { table, title, rows, columns, cells, caption, result, heats: new Array(cells.length).fill(GONE), picked: -1 };
}

/** What a stage is called, by eye and by ear. */
function nameStage(grid, title) {
  if (grid.title.textContent === title) return;
  say(grid.title, title);
  say(grid.tab, title);
  grid.table.setAttribute("aria-label", `${title}: rows are the first token, columns the second`);
}

/** Buttons that choose the one stage on screen, where there is no room for three. */
function connectTabs(root, box, names, grids) {
  const tabs = names.map((name, i) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.className = "dm-button";
    tab.addEventListener("click", () => lookAt(i));
    say(tab, grids[i].title.textContent);
    grids[i].tab = tab;
    return tab;
  });
  const lookAt = (at) => {
    root.dataset.stage = names[at];
    tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === at)));
  };
  box.append(...tabs);
  lookAt(1);
}

const TEACHING_DELAY = 180;

/** At teaching pace mask and threshold come one after the other. */
function dropIn([, ...later]) {
  later.forEach(({ table }, i) => {
    table.animate({ opacity: [0, 1] }, { duration: 120, delay: TEACHING_DELAY * (i + 1), fill: "backwards" });
  });
}

function sketch(heats, picked) {
  const picture = document.createElement("div");
  picture.className = "dm-sketch";
  picture.setAttribute("aria-hidden", "true");
  heats.forEach((warmth, at) => {
    const cell = document.createElement("i");
    cell.className = "dm-cell";
    cell.classList.toggle("gone", warmth === GONE);
    cell.classList.toggle("picked", at === picked);
    cell.style.setProperty("--heat", Math.max(0, warmth));
    picture.append(cell);
  });
  return picture;
}

/** The table's corner, which says what rows and columns are. */
function axes() {
  const corner = document.createElement("td");
  for (const words of ["2nd →", "1st ↓"]) {
    const axis = document.createElement("span");
    axis.textContent = words;
    corner.append(axis);
  }
  return corner;
}

function heading(row, scope) {
  const cell = document.createElement("th");
  cell.scope = scope;
  const label = document.createElement("span");
  cell.append(label);
  row.append(cell);
  return label;
}

/** values: as many rows and columns as `joint` names candidates; picked: where in the grid the sample lies, or -1. */
function drawGrid(grid, joint, values, picked) {
  const [rows, columns] = joint.text;
  fit(grid, rows.length, columns.length);
  grid.rows.forEach((label, i) => say(label, visible(rows[i] ?? "")));
  grid.columns.forEach((label, i) => say(label, visible(distinctName(columns[i] ?? "", columns))));
  for (let at = 0; at < grid.cells.length; at++) {
    const column = at % SIZE;
    const value = column < columns.length ? values[((at - column) / SIZE) * columns.length + column] : 0;
    drawCell(grid, at, value > 0 ? heat(value) : GONE);
  }
  markPicked(grid, picked);
}

/** A column's name, cut in its middle where its beginning, which is all there is room for, is another's too. */
function distinctName(text, names) {
  const alike = names.filter((name) => name.slice(0, 5) === text.slice(0, 5)).length > 1;
  return alike && text.length > 5 ? `${text.slice(0, 2)}…${text.slice(-2)}` : text;
}

/** Fewer candidates than ten, fewer rows and columns: an empty one would read as removed. */
function fit(grid, rows, columns) {
  if (grid.size === `${rows} x ${columns}`) return;
  grid.size = `${rows} x ${columns}`;
  grid.rows.forEach((label, i) => (label.closest("tr").hidden = i >= rows));
  grid.columns.forEach((label, i) => (label.closest("th").hidden = i >= columns));
  grid.cells.forEach((cell, at) => (cell.hidden = at % SIZE >= columns));
}

function clearGrid(grid) {
  for (const label of [...grid.rows, ...grid.columns]) say(label, "");
  for (let at = 0; at < grid.cells.length; at++) drawCell(grid, at, GONE);
  markPicked(grid, -1);
}

function drawCell(grid, at, warmth) {
  const before = grid.heats[at];
  if (warmth === before) return;
  grid.heats[at] = warmth;
  const cell = grid.cells[at];
  if ((warmth === GONE) !== (before === GONE)) cell.classList.toggle("gone", warmth === GONE);
  if (warmth !== GONE) cell.style.setProperty("--heat", warmth);
}

function markPicked(grid, picked) {
  if (picked === grid.picked) return;
  grid.cells[grid.picked]?.classList.remove("picked");
  grid.cells[picked]?.classList.add("picked");
  grid.picked = picked;
}

/** 0 to 1 in hundredths: no eye sees more, and cells that look alike are not touched. */
function heat(value) {
  const warmth = 1 - Math.log10(value) / Math.log10(DARKEST);
  return Math.round(100 * Math.max(0, Math.min(1, warmth))) / 100;
}

/** Where the sampled pair stands in the tables, -1 where it is beyond them or nothing was sampled. */
function pickedCell(joint) {
  const [row, column] = joint.picked;
  return row < joint.text[0].length && column < joint.text[1].length ? row * SIZE + column : -1;
}

/** A cell in all three stages, in words; "" where no candidates stand. */
function cellInWords(at, { pass, joint, unpacked }, threshold) {
  const column = at % SIZE;
  const row = (at - column) / SIZE;
  const [rows, columns] = joint.text;
  if (!unpacked) return ""; // chosen, but not drawn yet
  if (row >= rows.length || column >= columns.length) return "";
  const index = row * columns.length + column;
  const grown = isGrown(pass);
  const left = (grown ? rowGiven(joint, unpacked.masked) : applyThreshold(unpacked, joint, threshold).grid)[index];
  const masked = unpacked.masked[index];
  const steps = [
    `${visible(rows[row])} + ${visible(columns[column])}`,
    `product ${percent(unpacked.product[index])}`,
    ...correctedInWords(index, joint, unpacked, visible(rows[row])),
  ];
  if (masked > 0 && left > 0) steps.push(`${percent(left)} of what is left`);
  else if (masked > 0) steps.push(grown ? "not in the row of the token drawn" : "below the threshold");
  return steps.join("  →  ");
}

/** What the second stage made of a cell. */
function correctedInWords(index, { correction }, { masked, given }, first) {
  if (given) return [`${percent(given[index])} given “${first}”`, `together ${percent(masked[index])}`];
  if (correction) return [`reweighted ${percent(masked[index])}`];
  return [masked[index] > 0 ? `after the mask ${percent(masked[index])}` : "removed by the mask"];
}

/** Arrow keys move the focus from cell to cell within a table. */
function moveInGrid(event, grids) {
  const cell = event.target.closest(".dm-cell");
  const offset = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: SIZE, ArrowUp: -SIZE }[event.key];
  if (!cell || !offset) return;
  event.preventDefault();
  const { cells } = grids.find((grid) => grid.cells.includes(cell));
  const at = Number(cell.dataset.at);
  const sideways = Math.abs(offset) === 1 && Math.floor(at / SIZE) !== Math.floor((at + offset) / SIZE);
  const target = cells[at + offset];
  if (!target?.checkVisibility() || sideways) return;
  cell.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

/** Sets a text only where it differs: an assignment alone would already cost a layout. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
