// What a visitor takes away from a pane: the answer on the clipboard or in a file, the trace in a file.

const LABEL_MILLISECONDS = 1600;

const SAVINGS = {
  copy: async (turn) => ((await copyText(textOf(turn))) ? "Copied" : "Not allowed"),
  text: async (turn) => saveFile(fileName(turn.header, "txt"), textOf(turn) + "\n", "text/plain"),
  trace: async (turn, server) =>
    saveFile(fileName(turn.header, "ndjson"), await wholeTrace(turn, server), "application/x-ndjson"),
};

/** Each button does its saving of the current turn, and says for a moment that it did. */
function connectSaving(buttons, currentTurn, announce, server) {
  for (const button of buttons) {
    const label = button.querySelector("span");
    const usual = label.textContent;
    button.title = usual;
    button.addEventListener("click", async () => {
      const message = (await SAVINGS[button.dataset.action](currentTurn(), server)) ?? "Saved";
      button.style.minWidth = `${button.offsetWidth}px`; // a shorter word moves nothing
      label.textContent = announce.textContent = message;
      button.dataset.said = "";
      setTimeout(() => {
        label.textContent = usual;
        delete button.dataset.said;
      }, LABEL_MILLISECONDS);
    });
  }
}

/** The whole trace as the server has it, joints included; where it has forgotten the run, the pane's own lines. */
async function wholeTrace(turn, server) {
  let known = null;
  try {
    known = await server.get_trace(turn.header.run);
  } catch {
    // A server that is gone has forgotten the run too.
  }
  return known ?? traceOf(turn);
}
