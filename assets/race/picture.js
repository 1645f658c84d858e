// The race as a picture: question, clocks and both answers, in the page's colours.
//
// Texts are laid out by the browser in an element that nobody sees, which knows every script and direction; where it put
// them is then drawn on a canvas, a line of text at a time.

const PICTURE = { width: 1200, margin: 40, gap: 28, scale: 2, base: 500 }; // base: the left lane's width
const TEXT = { size: 17, height: 29 };
const MOST_LINES = 24; // of an answer; what is beyond is counted

/**
 * A race laid out for a picture: {canvas, draw}. draw(faces, counts): as facesOf() says, and how many of each lane's
 * passes show, all without counts. remark: where the answers come from; scale: pixels of a point.
 */
function pictureOf(root, { base, dynamo }, remark, scale = PICTURE.scale) {
  const style = getComputedStyle(root);
  const colours = Object.fromEntries(
    ["ink", "ink-2", "line", "card", "quiet", "two", "two-tint", "three", "three-tint", "backoff"].map((name) => [
      name,
      style.getPropertyValue(`--dm-${name}`).trim(),
    ]),
  );
  const { width, margin, gap } = PICTURE;
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const font = (size, weight = 400) => `${weight} ${size}px ${style.fontFamily}`;
  const inner = (wide) => wide - 2 * 18; // of a lane's card
  const columns = [
    [base, margin, PICTURE.base],
    [dynamo, margin + PICTURE.base + gap, width - 2 * margin - PICTURE.base - gap],
  ].map(([lane, x, wide]) => [lane, x, wide, layOut(root, font(TEXT.size), inner(wide), partsOf(lane.passes))]);
  const asked = layOut(root, font(22, 600), width - 2 * margin, [{ text: dynamo.header.prompt }], 2);
  const top = 76 + asked.height + 108;
  const tall = Math.max(...columns.map(([, , , text]) => text.height)) + 82;
  canvas.width = Math.round(scale * width);
  canvas.height = Math.round(scale * (top + tall + 58));
  pen.scale(scale, scale);
  const write = (text, x, y, size, weight, colour = "ink", room = width) => {
    pen.font = font(size, weight);
    pen.fillStyle = colours[colour];
    pen.fillText(text, x, y, room);
  };

  function draw(faces, counts) {
    pen.fillStyle = colours.card;
    pen.fillRect(0, 0, width, top + tall + 58);
    write("DynaMo", margin, 58, 26, 700);
    const beside = pen.measureText("DynaMo").width + 18;
    write(settingsInWords(dynamo.header), margin + beside, 57, 15, 400, "ink-2", width - 2 * margin - beside);
    drawText(pen, asked, margin, 76, font(22, 600), colours);
    const clocks = [
      [faces.passes, "tokens per pass", faces.passesNote],
      [faces.speed, faces.speedName, faces.speedNote],
      [faces.variety, "variety of words", faces.varietyNote],
      [faces.first, "first token", faces.firstNote],
    ];
    for (const [i, [figure, name, note]] of clocks.entries()) {
      const [x, y] = [margin + (i * (width - 2 * margin)) / clocks.length, top - 66];
      write(figure, x, y, 32, 700);
      write(name, x, y + 21, 14, 600);
      write(note, x, y + 40, 13, 400, "ink-2");
    }
    for (const [lane, x, wide, text] of columns) {
      pen.strokeStyle = colours.line;
      pen.beginPath();
      pen.roundRect(x, top, wide, tall, 12);
      pen.stroke();
      write(lane.kind === "dynamo" ? "DynaMo" : opponentOf(lane.header)[0].replace("the base", "Base"), x + 18, top + 32, 17, 650);
      const { tokens, passes } = laneClocks(lane.passes, counts?.[lane.kind]);
      const count = `${plural(tokens, "token")} in ${plural(passes, "pass")}`;
      const whole = text.left && passes === lane.passes.length;
      write(whole ? `${count}; the last ${text.left} not shown` : count, x + 18, top + tall - 16, 13, 400, "ink-2", inner(wide));
      drawText(pen, text, x + 18, top + 46, font(TEXT.size), colours, passes);
    }
    write(`Tokens of one pass share a colour. ${remark}`, margin, top + tall + 34, 13, 400, "ink-2", width - 2 * margin);
  }
  return { canvas, draw };
}

function settingsInWords({ model, options }) {
  const mode = options.exact ? "exact mode" : `threshold ${options.threshold}`;
  return [bidiIsolate(model), mode, `temperature ${options.temperature}`, `seed ${options.seed}`].join("  ·  ");
}

/** An answer's tokens; one without ink has a mark, as in the pane. */
function partsOf(passes) {
  const parts = passes.flatMap((step, pass) =>
    step.text.map((text) => ({ step, pass, text: text.trim() ? text : text.includes("\n") ? `⏎${text}` : text || "◦" })),
  );
  if (parts.length) parts[0].text = parts[0].text.trimStart();
  return parts;
}

/** Where the browser puts these parts: {lines, boxes, height, direction, left: parts that are on no line}. */
function layOut(root, font, width, parts, most = MOST_LINES) {
  const box = document.createElement("div");
  box.dir = "auto";
  box.style.cssText = "position:fixed;top:0;left:0;visibility:hidden;white-space:pre-wrap;overflow-wrap:anywhere";
  Object.assign(box.style, { font, lineHeight: `${TEXT.height}px`, width: `${width}px` });
  box.append(...parts.map(({ text }) => Object.assign(document.createElement("span"), { textContent: spellCommands(text) })));
  root.append(box);
  const [lines, boxes, begun, range] = [new Map(), new Map(), new Set(), document.createRange()];
  for (const [i, { firstChild }] of [...box.children].entries()) {
    const { step } = parts[i];
    let at = 0;
    for (const character of firstChild?.data ?? "") {
      range.setStart(firstChild, at);
      range.setEnd(firstChild, (at += character.length));
      const place = [...range.getClientRects()].at(-1);
      if (!place || character === "\n") continue;
      const row = Math.floor((place.top + place.height / 2) / TEXT.height);
      grow(lines, row, { row, text: "" }, place).text += character;
      if (!begun.has(step) && !character.trim()) continue; // the space before a chunk is not its own
      begun.add(step);
      grow(boxes, `${row} ${i}`, { row, part: i }, place);
    }
  }
  const { direction } = getComputedStyle(box);
  box.remove();
  const shown = [...lines.values()].filter(({ row }) => row < most);
  const left = new Set([...boxes.values()].filter(({ row }) => row >= most).map(({ part }) => part)).size;
  const height = TEXT.height * Math.min(most, Math.max(0, ...lines.keys()) + 1);
  return { parts, lines: shown, boxes: [...boxes.values()].filter(({ row }) => row < most), height, direction, left };
}

/** The entry of a key, as wide as all places that it was given. */
function grow(map, key, fresh, { left, right }) {
  if (!map.has(key)) map.set(key, { ...fresh, left, right });
  const entry = map.get(key);
  return Object.assign(entry, { left: Math.min(entry.left, left), right: Math.max(entry.right, right) });
}

/** passes: how many show, where the text is of any. */
function drawText(pen, { parts, lines, boxes, direction }, x, y, font, colours, passes = Infinity) {
  const shown = boxes.filter(({ part }) => (parts[part].pass ?? 0) < passes);
  for (const [i, box] of shown.entries()) {
    const before = shown[i - 1]?.row === box.row ? parts[shown[i - 1].part] : null; // in this line
    if (parts[box.part].step) drawMark(pen, parts, before, box, x, y + TEXT.height * box.row, colours);
  }
  pen.save();
  if (shown.length < boxes.length) {
    pen.beginPath();
    for (const { row, left, right } of shown) pen.rect(x + left, y + TEXT.height * row, right - left, TEXT.height);
    pen.clip();
  }
  pen.font = font;
  pen.fillStyle = colours.ink;
  const { fontBoundingBoxAscent: over, fontBoundingBoxDescent: under } = pen.measureText("x");
  pen.direction = direction;
  pen.textAlign = "left";
  for (const { text, left, row } of lines) {
    pen.fillText(text, x + left, y + TEXT.height * row + (TEXT.height + over - under) / 2);
  }
  pen.restore();
}

/** What the pane's style draws for one token of a chunk: tint, underline, a line towards the token before. */
function drawMark(pen, parts, before, { part, left, right }, x, y, colours) {
  const { step } = parts[part];
  const size = Math.min(3, step.ids.length);
  const inside = parts[part + 1]?.step === step; // the chunk goes on
  const end = x + right - (inside ? 0 : 2);
  const [top, bottom] = [y + 3, y + TEXT.height - 3];
  const tone = ["backoff", "two", "three"][size - 1];
  if (size > 1) {
    pen.fillStyle = colours[`${tone}-tint`];
    pen.fillRect(x + left, top, end - x - left, bottom - top);
  } else if (!step.backoffs?.length) return;
  pen.fillStyle = colours[tone];
  if (size === 1) for (let dot = x + left; dot < end; dot += 4) pen.fillRect(dot, bottom, 2, 2);
  else if (size === 2) pen.fillRect(x + left, bottom, end - x - left, 2);
  else for (const offset of [0, 2.5]) pen.fillRect(x + left, bottom + offset - 0.5, end - x - left, 1.2);
  if (size > 1 && before?.step === step) pen.fillRect(x + left - 0.5, top, 0.7, bottom - top);
}
