// The tooltip of a pane: text beside a chunk. The pointer may rest on it, Escape closes it, and it stays on screen.

const TIP_GRACE = 160; // ms in which the pointer may cross from the chunk to the tip
const TIP_MARGIN = 8;

function createTip(root, tip) {
  let anchor = null;
  let pointer = null;
  let hiding = 0;

  function show(target, lines, at = null) {
    clearTimeout(hiding);
    anchor?.removeAttribute("aria-describedby");
    [anchor, pointer] = [target, at];
    tip.replaceChildren(...lines);
    tip.hidden = false;
    place();
    anchor.setAttribute("aria-describedby", tip.id);
  }

  /** Below the line of the chunk that the pointer is on, or above it where the window ends. */
  function place() {
    const box = root.getBoundingClientRect();
    const line = lineAt([...anchor.getClientRects()]);
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left = Math.min(line.left - box.left, box.width - width - TIP_MARGIN);
    const below = line.bottom + 2;
    const above = line.top - height - 2;
    const top = below + height > window.innerHeight - TIP_MARGIN && above >= TIP_MARGIN ? above : below;
    tip.style.left = `${Math.max(TIP_MARGIN, left)}px`;
    tip.style.top = `${top - box.top}px`;
  }

  function lineAt(lines) {
    const touches = ({ left, right, top, bottom }) =>
      pointer.x >= left - 1 && pointer.x <= right + 1 && pointer.y >= top - 1 && pointer.y <= bottom + 1;
    return (pointer && lines.find(touches)) || lines[0] || anchor.getBoundingClientRect();
  }

  /** After scrolling: the tip goes with its chunk, and away with it. */
  function follow(box) {
    if (!anchor) return;
    const [frame, line] = [box.getBoundingClientRect(), anchor.getBoundingClientRect()];
    pointer = null;
    if (line.bottom < frame.top || line.top > frame.bottom || !line.height) hide();
    else place();
  }

  function hide() {
    clearTimeout(hiding);
    anchor?.removeAttribute("aria-describedby");
    anchor = null;
    tip.hidden = true;
  }

  function hideSoon() {
    clearTimeout(hiding);
    hiding = setTimeout(hide, TIP_GRACE);
  }

  return { show, follow, hide, hideSoon, keep: () => clearTimeout(hiding) };
}
