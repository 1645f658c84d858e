// The first token at which this lane's answer parts from the other's ("fork", told by the race bar): marked in the text,
// and under it a button that opens that place in both panes.

/**
 * look: () => {turn, drawn}: the current run and its elements; sight: of the text; open: called with the pass in which
 * the lanes part. Returns what to call after each change of the pane.
 */
function connectFork(bus, side, look, sight, open) {
  const button = make("button", "dm-fork-link");
  button.type = "button";
  button.addEventListener("click", () => bus.dispatchEvent(new CustomEvent("fork-look")));
  let fork = null;
  let marked = null;

  function tokenAtFork() {
    const { turn, drawn } = look();
    const piece = fork && turn?.header.run === fork.runs[side] ? drawn?.pieces[fork.at[side].pass] : null;
    return piece?.querySelectorAll(".dm-token")[fork.at[side].token] ?? null;
  }

  function draw() {
    const token = tokenAtFork();
    if (token !== marked) {
      marked?.classList.remove("fork");
      token?.classList.add("fork");
      marked = token;
    }
    if (!token) return button.remove();
    const words = forkInWords(fork.common);
    if (button.textContent !== words) button.textContent = words;
    const { tally } = look().drawn;
    if (button.parentElement !== tally) tally.append(button);
  }

  bus.addEventListener("fork", ({ detail }) => {
    fork = detail;
    draw();
    sight.keepEnd();
  });
  bus.addEventListener("fork-look", () => {
    const token = tokenAtFork();
    if (!token) return;
    sight.bring(token);
    open(fork.at[side].pass);
  });
  return draw;
}

function forkInWords(common) {
  if (common === 0) return "The answers part at their first token";
  return `The answers part after ${plural(common, "token")}`;
}
