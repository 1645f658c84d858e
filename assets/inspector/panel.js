// The inspector's panel: what is drawn of one pass, and what its cells say when they are read. Which pass that is, and
// when it is drawn, is decided in inspector.js. `view` is {run, pass, joint, unpacked}, the last added here.

const AT_REST =
  "Every pass of DynaMo is taken apart here while it happens; a click on a chunk of its text comes back to the pass " +
  "it came from. The three pictures below only show the idea.";
const READ_ME = "Point at a cell to read it.";
const LOST = "This pass is no longer stored. Generate again to look inside it.";

const STAGES = ["product", "mask", "threshold"];

/** look: () => {view, threshold}: what is shown, view null where nothing is, and what stage 3 is computed at. */
function createPanel(root, look) {
  const part = (name) => root.querySelector(`.dm-${name}`);
  const grids = STAGES.map((name, i) => buildGrid(part(`stage-${name}`), i));

  function drawAtRest() {
    root.dataset.state = "empty";
    part("emitted").hidden = part("drafts").hidden = true;
    say(part("title"), "Inside a forward pass");
    say(part("subtitle"), "");
    say(part("lead"), AT_REST);
    nameStage(grids[1], correctionTitle());
    drawKeys(part, grids[2], null);
    grids.forEach((grid, i) => {
      clearGrid(grid);
      say(grid.caption, LESSON[i]);
      say(grid.result, "");
    });
  }

  /** What is said of the pass: as cheap as a line of text. last: its answer is over, and ended with it. */
  function drawPass(last) {
    const { pass, joint } = look().view;
    root.dataset.state = joint ? "joint" : "single";
    drawEmitted(part("emitted"), pass);
    say(part("lead"), "");
    drawVerdict();
    drawDrafts(part("drafts"), pass);
    if (!joint) say(part("no-joint"), noJointInWords(pass, last));
  }

  /** The grids, and what explains them. Without a joint those of the pass before keep their place, unseen. */
  function drawJoint() {
    const { view, threshold } = look();
    if (!view?.joint) return;
    view.unpacked ??= unpackJoint(view.joint);
    drawStages(view, threshold);
    drawLadder(part("ladder"), view.pass, view.joint, threshold);
    drawThird(part("third"), view.pass, view.joint);
  }

  function drawStages({ pass, joint, unpacked }, threshold) {
    const after = applyThreshold(unpacked, joint, threshold);
    const picked = pickedCell(joint);
    const third = isGrown(pass) ? rowGiven(joint, unpacked.masked) : after.grid;
    const unmasked = isUnmasked(pass, unpacked, joint.correction);
    const corrected = unpacked.given ?? (unmasked ? unpacked.product : unpacked.masked);
    const values = [unpacked.product, corrected, third];
    const results = stageResults(pass, joint, unpacked, after);
    const captions = stageCaptions(pass, joint, threshold, unmasked);
    nameStage(grids[1], correctionTitle(joint.correction));
    drawKeys(part, grids[2], pass);
    grids.forEach((grid, i) => {
      drawGrid(grid, joint, values[i], picked);
      say(grid.caption, captions[i]);
      say(grid.result, results[i]);
    });
  }

  /** What the pass did; while the slider is away from the run's threshold, what it would have done there. */
  function drawVerdict() {
    const { view, threshold } = look();
    const { pass, joint } = view;
    const asking = joint && Math.abs(threshold - joint.threshold) > 1e-9;
    const [phrase, reason] = asking ? whatIfInWords(pass, joint, threshold) : verdictInWords(pass, joint);
    root.classList.toggle("dm-asking", Boolean(asking));
    say(part("verdict").children[0], phrase);
    say(part("verdict").children[1], asking ? `${reason} This answer ran at ${joint.threshold}.` : reason);
  }

  function readCell(cell, politely) {
    const { view, threshold } = look();
    if (!cell || !view?.joint) return;
    const at = Number(cell.dataset.at);
    const words = cellInWords(at, view, threshold);
    if (!words) return;
    part("readout").setAttribute("aria-live", politely ? "polite" : "off");
    say(part("readout"), words);
    root.querySelectorAll(".dm-cell.read").forEach((other) => other.classList.remove("read"));
    for (const grid of grids) grid.cells[at].classList.add("read");
  }

  function unread() {
    root.querySelectorAll(".dm-cell.read").forEach((cell) => cell.classList.remove("read"));
    say(part("readout"), READ_ME);
  }

  root.addEventListener("mouseover", (event) => readCell(event.target.closest(".dm-cell"), false));
  part("stages").addEventListener("mouseleave", unread);
  root.addEventListener("click", (event) => readCell(event.target.closest(".dm-cell"), false));
  root.addEventListener("focusin", (event) => readCell(event.target.closest(".dm-cell"), true));
  root.addEventListener("keydown", (event) => moveInGrid(event, grids));
  say(part("readout"), READ_ME);
  connectTabs(root, part("stage-tabs"), STAGES, grids);
  return {
    drawAtRest,
    drawPass,
    drawJoint,
    drawVerdict,
    dropIn: () => dropIn(grids),
    sayLost: () => say(part("readout"), LOST),
  };
}
