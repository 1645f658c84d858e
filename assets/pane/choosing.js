// How a visitor points at a pass of a pane and chooses it: by pointer, finger or keys. Tab stops once in the text, arrows
// lead from chunk to chunk across the turns.

/**
 * turns: () => those of the chat; inspectable: () => whether passes can be looked at; choose: called with a turn and the
 * index of its pass. Returns {reach}: makes a chunk the one that Tab reaches, null for none.
 */
function connectChoosing(root, text, tip, { turns, inspectable, choose }) {
  let cursor = null;

  /** The pass that an event is about: its turn, its place, and what to point at. */
  function passAt(event) {
    const target = event.target.closest?.(".dm-chunk, .dm-bar");
    if (!target || !root.contains(target)) return null;
    const number = target.closest(".dm-turn")?.dataset.turn ?? turns().length - 1;
    return { turn: turns()[number], index: Number(target.dataset.index), target };
  }

  function reach(chunk) {
    if (cursor) cursor.tabIndex = -1;
    cursor = chunk;
    if (cursor) cursor.tabIndex = 0;
  }

  function showTip({ turn, index, target }, pointer = null) {
    const hint = inspectable() ? "Click to look inside this pass" : "";
    tip.show(target, drawTip(turn, turn.passes[index], hint), pointer);
  }

  function onKey(event) {
    const pass = passAt(event);
    if (!pass || event.altKey || event.ctrlKey || event.metaKey) return;
    if (["ArrowRight", "ArrowLeft", "Home", "End"].includes(event.key)) neighbourOf(pass.target, event.key, text)?.focus();
    else if (inspectable() && (event.key === "Enter" || event.key === " ")) choose(pass.turn, pass.index);
    else return;
    event.preventDefault();
  }

  root.addEventListener("keydown", onKey);
  root.addEventListener("mouseover", (event) => {
    const pass = passAt(event);
    if (pass) showTip(pass, { x: event.clientX, y: event.clientY });
    else if (event.target.closest(".dm-tip")) tip.keep();
    else tip.hideSoon();
  });
  root.addEventListener("mouseleave", tip.hideSoon);
  root.addEventListener("focusin", (event) => {
    const pass = passAt(event);
    if (!pass) return;
    reach(pass.target);
    showTip(pass);
  });
  root.addEventListener("focusout", tip.hideSoon);
  root.addEventListener("click", (event) => {
    const pass = passAt(event);
    if (!pass || !inspectable()) return;
    if (event.pointerType === "mouse") tip.hide(); // a finger needs it: it says where to look
    choose(pass.turn, pass.index);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hide();
  });
  return { reach };
}
