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

/** Whether both lanes answer the same message; a lane decoded again has a run of its own. */
function areComparable({ base, dynamo }) {
  return Boolean(base?.header && dynamo?.header) && base.header.prompt === dynamo.header.prompt;
}

/** The same message and seed at other settings: only DynaMo was decoded again. */
function wasDecodedAgain(lanes) {
  const options = ({ header }) => JSON.stringify(Object.entries(header.options ?? {}).sort());
  return areComparable(lanes) && options(lanes.base) !== options(lanes.dynamo);
}

/** How many passes were done by a moment of model time; null: all of them. `ends` as in player.js. */
function doneBy(ends, moment) {
  if (moment === null) return ends.length;
  const next = ends.findIndex((end) => end > moment);
  return next < 0 ? ends.length : next;
}

/** The clocks of both lanes over what is shown of them, null until both have decoded something. */
function clocksOf(lanes, counts) {
  if (!areComparable(lanes) || isBlind(lanes.base) || isBlind(lanes.dynamo)) return null;
  const base = laneClocks(lanes.base.passes, counts.base);
  const dynamo = laneClocks(lanes.dynamo.passes, counts.dynamo);
  if (!base.tokensPerSecond || !dynamo.tokensPerSecond) return null;
  return {
    base,
    dynamo,
    speedUp: dynamo.tokensPerSecond / base.tokensPerSecond,
    gain: dynamo.tokensPerPass / base.tokensPerPass,
  };
}

// ---- in words

/** 0.107 s: what a stopwatch would say. */
function stopwatch(milliseconds) {
  if (milliseconds < 10) return `${Number(milliseconds.toPrecision(2))} ms`;
  if (milliseconds < 99.5) return `${milliseconds.toFixed(0)} ms`;
  return `${(milliseconds / 1000).toFixed(milliseconds < 9995 ? 2 : 1)} s`;
}

/** What stands on the clocks' faces; `clocks` may be null. */
function facesOf(clocks, lanes) {
  const relation = clocks && clocks.speedUp < 1 ? "the speed of" : "faster than";
  const speedName = `${relation} ${opponentOf(lanes.base?.header)[0]}`;
  const none = { passes: "–", passesNote: "", speed: "–", speedName, speedNote: "", first: "–", firstNote: "" };
  if (!clocks) return none;
  const { base, dynamo } = clocks;
  return {
    passes: dynamo.tokensPerPass.toFixed(2),
    passesNote: `against ${base.tokensPerPass.toFixed(2)}`,
    speed: `${clocks.speedUp.toFixed(2)}×`,
    speedName,
    speedNote: `${dynamo.tokensPerSecond.toFixed(0)} against ${base.tokensPerSecond.toFixed(0)} tok/s (model time only)`,
    first: stopwatch(dynamo.firstToken),
    firstNote: `against ${stopwatch(base.firstToken)}`,
  };
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
  const lead = settled ? `DynaMo wrote ${written}.` : `DynaMo has written ${written} so far.`;
  return `${lead} One at a time needs ${tokens}.`;
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

// What else may differ between the lanes, by the name of the option.
const CHANGES = {
  mask_strength: (strength) => (strength === 0 ? "without the mask" : `mask strength ${strength}`),
  correction: (name) => ({ none: "without a correction", table: "with the counted mask" })[name] ?? `with ${name} correction`,
  draw: (name) => (name === "anchored" ? "anchored draw" : "whole chunks drawn"),
  adaptive: (on) => (on ? "with Otsu's threshold" : "without Otsu's threshold"),
  blur: (width) => (width > 1 ? "with the blur" : "without the blur"),
  max_order: (order) => `at most ${plural(order, "token")} per pass`,
  top_k: (count) => `${count} candidates per head`,
  temperature: (value) => `temperature ${value}`,
  repetition_penalty: (value) => `repetition penalty ${value}`,
};

function decodedAgainInWords({ base, dynamo }) {
  const [before, now] = [base?.header?.options ?? {}, dynamo.header.options];
  const changed = Object.keys(CHANGES).filter((name) => name in before && name in now && before[name] !== now[name]);
  const settings = [now.exact ? "in exact mode" : `at threshold ${now.threshold}`];
  settings.push(...changed.map((name) => CHANGES[name](now[name])));
  return `DynaMo re-decoded ${settings.join(", ")}; base lane unchanged.`;
}

/** The pace on screen, and the real time: both lanes' totals, or so far while they run. */
function paceInWords(player, race, lanes) {
  if (player.phase === "empty" || player.phase === "waiting") return "";
  if (player.phase === "following") return "Live, as it arrives.";
  const took = race.done ? totalsInWords(race, lanes) : `${stopwatch(player.playhead ?? 0)} so far`;
  const truth = `Real time: ${took}.`;
  if (player.phase === "settled") return truth;
  if (player.mode === "step") return `${arrivalInWords(lanes, race.ends, player.playhead)} ${truth}`;
  const pace = player.slowdown > 1 ? `Slow motion, ${player.slowdown}×. ` : "Shown at model speed. ";
  return (player.phase === "paused" ? "Paused. " : "") + pace + truth;
}

function totalsInWords(race, lanes) {
  const took = (lane, i) => `${stopwatch(race.ends[i].at(-1) ?? 0)} (${nameOf(lane)})`;
  return lanes.map(took).join(" and ");
}
