// A race as a link: the lines of both lanes' traces, without their joints, compressed, in the address's fragment, which
// browsers keep to themselves. dynamo/ui/compare/link.py reads them and believes nothing.

const LINK = "#race=";
const LONGEST_LINK = 12_000; // characters; the message and the settings alone take some 500
const MOST_LINKED = 400_000; // bytes that a link is unpacked to, as much as a chat may have

/** The fragment of these lanes' race, and whether it holds the passes or, of a long answer, only what was asked. */
async function linkOf(lanes) {
  const whole = LINK + (await packed(linesOf(lanes, true)));
  if (whole.length <= LONGEST_LINK) return { fragment: whole, whole: true };
  return { fragment: LINK + (await packed(linesOf(lanes, false))), whole: false };
}

function linesOf(lanes, passes) {
  const lines = lanes.flatMap((lane) => {
    const header = { ...lane.header, run: "" }; // whoever opens it gives the run an id
    return passes ? [header, ...lane.passes, lane.end] : [header];
  });
  return lines.map((line) => JSON.stringify(line)).join("\n");
}

/** The lines that an address's fragment holds, "" where it holds none. Throws an Error for a damaged one. */
async function linkedLines(fragment) {
  if (!fragment.startsWith(LINK)) return "";
  try {
    return await unpacked(fragment.slice(LINK.length));
  } catch {
    throw new Error("The link is damaged, perhaps cut off on its way: no race can be read from it.");
  }
}

/** What was copied: also that it is one answer, not its whole chat. */
function copiedInWords(copied, whole, turns) {
  const lead = copied ? "Link copied" : "The link is in the address bar, as the clipboard is closed";
  const part = turns > 1 ? ", without the turns before it" : "";
  return `${lead}: ${whole ? `message, settings and every pass${part}` : `message and settings${part}; the answer is too long`}.`;
}

async function packed(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const base64 = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function unpacked(base64url) {
  const binary = atob(base64url.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let [text, length] = ["", 0];
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    length += next.value.length;
    if (length > MOST_LINKED) throw new RangeError("too long"); // a few bytes may unpack to any number
    text += decoder.decode(next.value, { stream: true });
  }
  return text + decoder.decode();
}
