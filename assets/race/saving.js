// The race as a file: a picture of its end, or an animated one at the pace that the page would show it at.

const FRAME = 100; // milliseconds on screen
const FIRST_FRAME = 600;
const LAST_FRAME = 5000;
const ANIMATION_SCALE = 0.8; // pixels of a point

/** lanes: both, as "lane" events bring them; tell: called with what to say of it. */
function savePicture(root, lanes, race, tell) {
  const { canvas, draw } = pictureOf(root, byKind(lanes), originInWords(lanes));
  draw(facesWhen(lanes, countsAt(lanes, race, Infinity)));
  canvas.toBlob((file) => {
    saveFile("dynamo-race.png", file, "image/png");
    tell("Picture saved.");
  });
}

async function saveAnimation(root, lanes, race, tell) {
  const factor = Math.min(judge(race) ?? 1, LONGEST_SHOW / race.total); // on screen, of model time
  const { canvas, draw } = pictureOf(root, byKind(lanes), `${originInWords(lanes)} ${factorInWords(factor)}`, ANIMATION_SCALE);
  const { width, height } = canvas;
  const pixelsAt = (moment) => {
    const counts = countsAt(lanes, race, moment);
    draw(facesWhen(lanes, counts), counts);
    return new Uint32Array(canvas.getContext("2d").getImageData(0, 0, width, height).data.buffer);
  };
  const end = pixelsAt(Infinity);
  const file = gifFile(width, height, coloursOf(end));
  file.add(pixelsAt(-1), FIRST_FRAME / 10);
  const frames = Math.floor((race.total * factor) / FRAME);
  for (let i = 0; i < frames; i++) {
    file.add(pixelsAt((i * FRAME) / factor), FRAME / 10);
    tell(`Drawing the animation: ${Math.round((100 * i) / frames)} %`);
    await new Promise(requestAnimationFrame);
  }
  file.add(end, LAST_FRAME / 10);
  saveFile("dynamo-race.gif", new Blob(file.done()), "image/gif");
  tell("Animation saved.");
}

const byKind = (lanes) => Object.fromEntries(lanes.map((lane) => [lane.kind, lane]));

/** Passes of each lane that were done by a moment of model time. */
function countsAt(lanes, race, moment) {
  return Object.fromEntries(lanes.map(({ kind }, i) => [kind, doneBy(race.ends[i], moment)]));
}

function facesWhen(lanes, counts) {
  return facesOf(clocksOf(byKind(lanes), counts), byKind(lanes), counts);
}

function originInWords(lanes) {
  return sourceInWords(byKind(lanes).dynamo.header) || "Both lanes ran in one race on one machine.";
}

function factorInWords(factor) {
  if (factor >= 1) return factor > 1 ? `Slow motion, ${Number(factor.toPrecision(2))}×.` : "At its own pace.";
  return `${Number((1 / factor).toPrecision(2))}× as fast as it ran.`;
}
