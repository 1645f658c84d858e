// What the race bar says, from the lanes' clocks: no DOM. Both clocks are made together or not at all.

// The base lane by its engine: what it is called, and what where there is little room.
const OPPONENTS = {
  loop: ["the base model", "base"],
  generate: ["transformers generate", "generate"],
  "threshold-1": ["DynaMo at threshold 1", "threshold 1"],
};

function opponentOf(header) {
  const engine = header?.engine ?? "";
  return OPPONENTS[Object.hasOwn(OPPONENTS, engine) ? engine : "loop"];
}

function nameOf({ kind, header }) {
  return kind === "dynamo" ? "DynaMo" : opponentOf(header)[1];
}

function isBlind(lane) {
  return lane?.header?.lane === "blind";
}

/** Whether both lanes answer the same message at the same settings: lanes that were timed in one run do. */
function areComparable({ base, dynamo }) {
  const options = ({ header }) => JSON.stringify(Object.entries(header.options ?? {}).sort());
  if (!base?.header || !dynamo?.header || base.header.prompt !== dynamo.header.prompt) return false;
  return options(base) === options(dynamo);
}

/** How many passes were done by a moment of model time; null: all of them. `ends` as in player.js. */
function doneBy(ends, moment) {
  if (moment === null) return ends.length;
  const next = ends.findIndex((end) => end > moment);
  return next < 0 ? ends.length : next;
}

// Two standard errors of a difference between two answers; where they are more, it is too short to say.
const WIDEST_DRIFT = 0.5; // nats a token
const WIDEST_VARIETY = 0.15; // of all pairs
const TOO_SHORT = "too short to say";
const LEAST_TOKENS = 16; // as in dynamo/trace/recorder.py

/**
 * The clocks of both lanes over what is shown of them, null until both have a pass. speedUp is null, and `unshown` says
 * why, over too few tokens and where our own loop's ratio is above the gain in tokens per pass: a pass of DynaMo does
 * more work, so something else held the base lane up. spread: two standard errors of speedUp.
 */
function clocksOf(lanes, counts) {
  if (!areComparable(lanes) || isBlind(lanes.base) || isBlind(lanes.dynamo)) return null;
  const base = laneClocks(lanes.base.passes, counts.base, lanes.base.end);
  const dynamo = laneClocks(lanes.dynamo.passes, counts.dynamo, lanes.dynamo.end);
  if (!base.passes || !dynamo.passes) return null;
  const gain = dynamo.tokensPerPass / base.tokensPerPass;
  const speedUp = dynamo.tokensPerSecond / base.tokensPerSecond;
  const few = Math.min(base.decoded, dynamo.decoded) < LEAST_TOKENS;
  const disturbed = speedUp > gain && lanes.base.header.engine !== "generate";
  const unshown = few ? "too few tokens to compare" : disturbed ? "disturbed clocks; try again" : "";
  const spread = 2 * speedUp * Math.hypot(base.spread, dynamo.spread);
  return { base, dynamo, gain, speedUp: unshown ? null : speedUp, spread, unshown };
}

// ---- in words

/** 0.107 s: what a stopwatch would say. */
function stopwatch(milliseconds) {
  if (milliseconds < 10) return `${Number(milliseconds.toPrecision(2))} ms`;
  if (milliseconds < 99.5) return `${milliseconds.toFixed(0)} ms`;
  return `${(milliseconds / 1000).toFixed(milliseconds < 9995 ? 2 : 1)} s`;
}

/** Nothing is called faster that may be so by chance. */
function leadInWords({ speedUp, spread }) {
  return speedUp - spread > 1 ? "faster than" : "the speed of";
}

/** What stands on the clocks' faces; `clocks` may be null. */
function facesOf(clocks, lanes, counts) {
  const opponent = opponentOf(lanes.base?.header)[0];
  const speedName = `${clocks ? leadInWords(clocks) : "faster than"} ${opponent}`;
  const faces = { passes: "–", speed: "–", speedName, speedTitle: "", first: "–", variety: "–", varietyTitle: "" };
  for (const note of ["passesNote", "speedNote", "firstNote", "varietyNote"]) faces[note] = "";
  if (!clocks) return faces;
  const { base, dynamo, speedUp, spread, unshown } = clocks;
  const spreadInWords = spread >= 0.005 ? `, ± ${spread.toFixed(2)}` : "";
  const rates = `${dynamo.tokensPerSecond.toFixed(0)} against ${base.tokensPerSecond.toFixed(0)} tok/s`;
  return {
    ...varietyFaces(...["dynamo", "base"].map((lane) => varietyOf(lanes[lane].passes, counts[lane]))),
    passes: dynamo.tokensPerPass.toFixed(2),
    passesNote: `against ${base.tokensPerPass.toFixed(2)}`,
    speed: unshown ? "–" : `${speedUp.toFixed(2)}×`,
    speedName: unshown ? `speed against ${opponentOf(lanes.base.header)[1]}` : speedName,
    speedNote: unshown || rates + spreadInWords,
    speedTitle: speedInWords(lanes, clocks),
    first: stopwatch(dynamo.firstToken),
    firstNote: `against ${stopwatch(base.firstToken)}`,
  };
}

/** How the speeds come about. */
function speedInWords(lanes, { base, dynamo }) {
  const how = lanes.base.end?.timed
    ? "The times of this race's passes spread far. So both lanes decoded the same once more, unseen, whole answers in turn: " +
      `these ${base.timings + dynamo.timings} passes were timed by the clock, in one run.`
    : "Both lanes were timed by the clock, pass by pass in turn, in one run.";
  return (
    `${how} Tokens a second: tokens per pass × the passes' mean speed, so that one pass held up by another program counts ` +
    "as one slow pass. ±: two standard errors."
  );
}

function varietyFaces(own, others) {
  const error = 2 * Math.hypot(own.error, others.error);
  const short = !(error <= WIDEST_VARIETY);
  return {
    variety: short ? "–" : shareInWords(own.distinct),
    varietyNote: short ? TOO_SHORT : `against ${shareInWords(others.distinct)}, ± ${Math.ceil(100 * error)} points`,
    varietyTitle:
      "Different pairs of tokens among all pairs: 100 % repeats nothing. " +
      `Runs of four tokens that stood there before: ${shareInWords(own.repeated)} against ${shareInWords(others.repeated)}. ` +
      "±: two standard errors of the difference, roughly.",
  };
}

/**
 * The face of the base's opinion: how much more surprised it is by DynaMo's text than by its own lane's. audit: as the
 * audit card has it, null before the base has read this answer; note: what stands there meanwhile.
 */
function driftOf(audit, note) {
  const faces = { drift: "–", driftNote: note, driftTitle: "" };
  if (!audit?.dynamo.tokens || !audit.base.tokens) return faces;
  const [own, others] = [audit.dynamo.nats, audit.base.nats];
  const drift = own - others;
  const error = 2 * Math.hypot(audit.dynamo.error, audit.base.error);
  const digits = Math.abs(drift).toFixed(2);
  const usual = Math.abs(drift) <= error ? "within chance" : drift > 0 ? "less usual" : "more usual";
  const short = error > WIDEST_DRIFT;
  return {
    drift: short ? "–" : `${digits === "0.00" ? "±" : drift > 0 ? "+" : "−"}${digits}`,
    driftNote: short ? TOO_SHORT : `± ${error.toFixed(2)} nats: ${usual}`,
    driftTitle:
      `The base model read both answers: DynaMo's surprised it by ${own.toFixed(2)} nats a token, its own by ${others.toFixed(2)}. ` +
      "Above 0: words that it finds less likely than its own. Below 0 is no praise: thresholds cut off unlikely words, so a " +
      `dull text scores well. One answer proves little: ± ${error.toFixed(2)} are two standard errors of the difference.`,
  };
}

/** 0.861 -> "86 %"; a text that is too short has no share. */
function shareInWords(share) {
  return share === null ? "–" : `${Math.round(100 * share)} %`;
}

/** The question that opens the time split: where the passes saved went. */
function gapInWords({ gain, speedUp }) {
  return speedUp < 0.97 * gain ? `why not ${gain.toFixed(2)}×?` : "where does the time go?";
}

/** How many passes were saved, so far or in all: one token at a time needs as many passes as tokens. */
function tallyInWords(passes, count, settled) {
  const { tokens } = laneClocks(passes, count);
  if (!tokens) return "";
  const written = `${plural(tokens, "token")} in ${plural(count, "pass")}`;
  return settled ? `DynaMo wrote ${written}. One at a time needs ${tokens}.` : `DynaMo has written ${written} so far.`;
}

/** Which passes were done just then: "DynaMo's pass 4: 3 tokens." */
function arrivalInWords(lanes, ends, moment) {
  const done = lanes.flatMap((lane, i) => {
    const step = lane.passes[ends[i].indexOf(moment)];
    const whose = lane.kind === "dynamo" ? "DynaMo's" : "the left lane's";
    return step ? [`${whose} pass ${step.pass + 1}, ${plural(step.ids.length, "token")}`] : [];
  });
  return done.length ? `After ${done.join(" and ")}.` : "Press Next pass.";
}

/** Where a recorded answer comes from, "" for a live one. */
function sourceInWords(header) {
  return header?.recorded ? `Recording of ${header.model}: ${header.recorded}.` : "";
}

/** The pace on screen, and the real time where it is another; that of a settled race stands beside its bars. */
function paceInWords(player, race, lanes) {
  if (["empty", "waiting", "settled"].includes(player.phase)) return "";
  if (player.phase === "following") return "Live. Both lanes take turns on this machine: each moves at half its speed.";
  const took = race.done ? totalsInWords(race, lanes) : `${stopwatch(player.playhead ?? 0)} so far`;
  const truth = `Real time: ${took}.`;
  if (player.mode === "step") return `${arrivalInWords(lanes, race.ends, player.playhead)} ${truth}`;
  const pace = player.slowdown > 1 ? `${player.mode === "teach" ? "Teaching pace" : "Slow motion"}, ${player.slowdown}×. ` : "Shown at model speed. ";
  if (player.phase !== "paused") return pace + truth;
  if (!isAtFirstBackOff(player, race)) return `Paused. ${pace}${truth}`;
  const reason = lanes.at(-1).passes.some(isExact) ? "rejected a draft" : "backed off";
  return `Stopped at the first pass that ${reason}: Play goes on.`;
}

function totalsInWords(race, lanes) {
  const took = (lane, i) => `${stopwatch(race.ends[i].at(-1) ?? 0)} (${nameOf(lane)})`;
  return lanes.map(took).join(", ");
}
