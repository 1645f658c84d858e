// Bidirectional text inside our own sentences: Hebrew and Arabic run from right to left, and invisible characters set
// directions until a paragraph's end. Neither may reorder the text beside it (dynamo/common/bidi.py does the same).

const COMMANDS = /[\u202A-\u202E\u2066-\u2069]/;
const FROM_THE_RIGHT = /[\u0590-\u08FF\u200F\uFB1D-\uFDFF\uFE70-\uFEFC\u{10800}-\u{10FFF}\u{1E800}-\u{1EFFF}]/u;

function codeOf(command) {
  return `U+${command.codePointAt(0).toString(16).toUpperCase()}`;
}

function spellCommands(text) {
  return text.replace(new RegExp(COMMANDS, "g"), (command) => `⟨${codeOf(command)}⟩`);
}

/** A text for the middle of a sentence: direction characters are spelled out, right-to-left text is isolated. */
function bidiIsolate(text) {
  const spelled = spellCommands(text);
  return FROM_THE_RIGHT.test(spelled) ? `\u2068${spelled}\u2069` : spelled;
}

/** A text as nodes of a paragraph: each direction character has an element of its own that ends it and shows its name. */
function bidiNodes(text) {
  if (!COMMANDS.test(text)) return text ? [text] : [];
  return text.split(new RegExp(`(${COMMANDS.source})`)).map((piece) => {
    if (!COMMANDS.test(piece)) return piece;
    const alone = document.createElement("bdi");
    alone.className = "dm-command";
    alone.dataset.name = codeOf(piece);
    alone.textContent = piece;
    return alone;
  });
}
