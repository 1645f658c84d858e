// The button beside the wall clock, and the panel that it opens: a non-modal disclosure with the time split.
//
// It opens on hover and on focus, a click keeps it, Escape closes it. The server profiles once and remembers; it is
// asked at the first opening, and not while a race is on, which would have to share the model.

const SPLIT_STATES = {
  unasked: "The time split is taken when this answer is done.",
  asking: "Profiling both models, once. This takes a few seconds …",
  missing: "The time split is not available here.",
  failed: "The time split did not come. Close this and open it again.",
};
const HOVER_DELAY = 250;
const LEAVE_DELAY = 300; // time for the pointer to reach the panel

/**
 * ask: () => promise of a split's JSON, or null; look: () => {clocks, engine, busy}, clocks null where there is no race
 * to explain. Returns what to call after a change of the race.
 */
function connectWhy(button, panel, ask, look) {
  const area = panel.parentElement;
  let open = false;
  let kept = false;
  let timer = 0;
  let state = "unasked";
  let split = null;
  let shown = ""; // what the panel shows; it is not redrawn with every frame

  function set(nowOpen, nowKept = false) {
    clearTimeout(timer);
    [open, kept] = [nowOpen, nowOpen && nowKept];
    if (!open && state === "failed") state = "unasked";
    draw();
  }

  function later(nowOpen, delay) {
    clearTimeout(timer);
    timer = setTimeout(() => set(nowOpen), delay);
  }

  function draw() {
    const { clocks, engine, busy } = look();
    button.hidden = !clocks;
    if (!clocks) open = kept = false;
    else if (open && !busy && state === "unasked") fetchSplit();
    button.textContent = clocks ? gapInWords(clocks) : "";
    button.setAttribute("aria-expanded", String(open));
    panel.hidden = !open;
    const next = split && clocks ? arithmeticOfSplit(split, clocks) : SPLIT_STATES[state];
    if (!open || shown === next) return;
    shown = next;
    panel.replaceChildren(...(split ? drawSplit(split, clocks, engine) : [build("p", "", next)]));
  }

  async function fetchSplit() {
    state = "asking";
    try {
      const text = await ask();
      split = text ? JSON.parse(text) : null;
      state = split ? "shown" : "missing";
    } catch {
      state = "failed";
    }
    draw();
  }

  button.addEventListener("click", () => set(!(open && kept), true));
  button.addEventListener("mouseenter", () => open || later(true, HOVER_DELAY));
  button.addEventListener("focus", () => open || set(true));
  for (const part of [button, panel]) {
    part.addEventListener("mouseleave", () => kept || later(false, LEAVE_DELAY));
    part.addEventListener("focusout", (event) => kept || area.contains(event.relatedTarget) || set(false));
  }
  panel.addEventListener("mouseenter", () => clearTimeout(timer));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && open) set(false);
  });
  return draw;
}
