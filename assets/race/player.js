// The player: which moment of a race is on screen. Pure, no DOM and no clock of its own: race.js tells it what has
// arrived and what time it is, and shows what it answers.
//
// Model time is what the passes took, in milliseconds; on screen it takes `slowdown` times as long, for both lanes
// alike. A player is a value {mode, phase, playhead, slowdown, ticked, still, taught}:
//   phase      empty, waiting (a new race of which too little is known to choose a pace), following (what arrives is
//              shown at once), playing, paused, settled (all has arrived and all is shown)
//   playhead   the moment shown, null: everything that arrived
//   ticked     when the playhead was moved last, by the caller's clock
//   still      the visitor asked for little motion: nothing plays by itself
//   taught     at teaching pace: the first pass that backed off was stopped at

const LIVE_PASS = 25; // of the base: 40 a second, as many as can be followed live
const BASE_PASS_ON_SCREEN = 100;
const TEACHING_PASS_ON_SCREEN = 650; // of DynaMo
const LONGEST_SHOW = 15_000; // on screen, of a race whose length is known
const LONGEST_PROMPT_ON_SCREEN = 3000; // for one lane's first token after the other's
const LEAD_IN = 500; // on screen, before the first token appears
const LONGEST_TICK = 250; // a tab that was hidden goes on where it was
const PASSES_TO_JUDGE_BY = 3; // the first decoded passes may be slow ones
const READABLE = [1, 10, 100, 1000].flatMap((ten) =>
  [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8].map((factor) => factor * ten).filter(Number.isInteger),
);

function newPlayer(still = false) {
  return { mode: "auto", phase: "empty", playhead: null, slowdown: 1, ticked: 0, still, taught: false };
}

/**
 * What the player needs to know of the lanes' current runs ("lane" events, the base lane first).
 *
 * ends: for each lane the model time at which each of its passes was done; arrived: the model time up to which all
 * is known; total: the longer lane's; firsts: when each lane's first pass was done; basePass: a decoded pass of the
 * first lane, the median, null while there is none; lastPass: one of the last lane; backOff: when DynaMo's first pass
 * that backed off, or rejected a draft, was done, Infinity while there is none; whole: no lane failed or was stopped;
 * stopped: by the visitor.
 */
function raceOf(lanes) {
  const ends = lanes.map(({ passes }) => {
    let elapsed = 0;
    return passes.map((step) => (elapsed += step.ms));
  });
  const last = ends.map((moments) => moments.at(-1) ?? 0);
  const running = last.filter((_, i) => lanes[i].state === "running");
  const decoded = lanes.map(({ passes }) => passes.filter((step) => !step.prefill).map((step) => step.ms));
  const dynamo = lanes.findIndex(({ kind }) => kind === "dynamo");
  const backOff = lanes[dynamo]?.passes.findIndex((step) => (step.rejected ?? step.backoffs)?.length) ?? -1;
  return {
    ends,
    done: lanes.length > 0 && running.length === 0,
    whole: lanes.every(({ end }) => end?.end !== "error" && end?.end !== "cancelled"),
    stopped: lanes.some(({ end }) => end?.end === "cancelled"),
    arrived: Math.min(...(running.length ? running : [Math.max(0, ...last)])),
    total: Math.max(0, ...last),
    firsts: ends.filter((moments) => moments.length).map((moments) => moments[0]),
    decoded: decoded[0]?.length ?? 0,
    basePass: medianOf(decoded[0]),
    lastPass: medianOf(decoded.at(-1)),
    backOff: backOff < 0 ? Infinity : ends[dynamo][backOff],
  };
}

function medianOf(values) {
  return values?.length ? values.toSorted((a, b) => a - b)[values.length >> 1] : null;
}

// ---- paces

/** The largest number that reads well and is not above `factor`: 17.3 -> 15. */
function readable(factor) {
  return READABLE.findLast((each) => each <= factor) ?? 1;
}

/** How much slower a short race is shown, so that a base pass takes about a tenth of a second. */
function slowdownFor(race) {
  const limits = [BASE_PASS_ON_SCREEN / race.basePass];
  const wait = Math.max(...race.firsts) - Math.min(...race.firsts);
  if (wait > 0) limits.push(LONGEST_PROMPT_ON_SCREEN / wait);
  if (race.done) limits.push(LONGEST_SHOW / race.total);
  return readable(Math.min(...limits));
}

/** The pace of a race of which only the beginning may be known: a slowdown, 1 for live, null while it is too early. */
function judge(race) {
  if (!race.done && race.decoded < PASSES_TO_JUDGE_BY && !(race.basePass >= BASE_PASS_ON_SCREEN)) return null;
  return race.basePass === null || race.basePass >= LIVE_PASS ? 1 : slowdownFor(race);
}

/** The pace by the player's mode, null while it is too early to tell. */
function knownPace({ mode }, race) {
  if (mode === "auto") return judge(race);
  if (mode !== "teach") return 1;
  if (race.lastPass === null) return race.done ? 1 : null;
  return readable(TEACHING_PASS_ON_SCREEN / race.lastPass);
}

function paceOf(player, race) {
  return knownPace(player, race) ?? 1;
}

// ---- what happens to a player

function settle(player, race) {
  return { ...player, phase: race.done ? "settled" : "following", playhead: null };
}

/** From the beginning; what came before the first token is not dwelt on. */
function startOver(player, race, now) {
  const slowdown = paceOf(player, race);
  const first = race.firsts.length ? Math.min(...race.firsts) : 0;
  const playhead = player.mode === "step" ? 0 : Math.max(0, first - LEAD_IN / slowdown);
  const phase = player.mode === "step" ? "paused" : "playing";
  return { ...player, phase, playhead, slowdown, ticked: now, taught: false };
}

/**
 * A race with runs that were not there before. kind: "live", "recording", or "aside" for one that is only to be
 * looked at: a lane decoded again, the lanes of a duel after the vote.
 */
function begin(player, race, kind, now) {
  const fresh = { ...player, slowdown: 1, ticked: now, taught: false };
  if (race.ends.length === 0) return { ...fresh, phase: "empty", playhead: null };
  if (kind === "aside" || (player.still && player.mode !== "step")) return settle(fresh, race);
  if (kind === "recording") return startOver(fresh, race, now);
  if (player.mode === "live") return settle(fresh, race);
  if (player.mode === "step") return startOver(fresh, race, now);
  return arrive({ ...fresh, phase: "waiting", playhead: 0 }, race, now);
}

/** More passes, or an end. */
function arrive(player, race, now) {
  if (race.done && race.stopped && player.playhead > 0) return halt(player);
  if (race.done && !race.whole) return settle(player, race);
  if (player.phase === "waiting") {
    const slowdown = knownPace(player, race);
    if (slowdown === null) return player;
    return slowdown === 1 && player.mode === "auto" ? settle(player, race) : startOver(player, race, now);
  }
  return player.phase === "following" && race.done ? settle(player, race) : player;
}

/** Nothing more appears, though more may have arrived. */
function halt(player) {
  return player.playhead === null ? player : { ...player, phase: "paused" };
}

/** The caller's clock says `now`. */
function tick(player, race, now) {
  if (player.phase !== "playing") return player;
  const passed = Math.min(LONGEST_TICK, Math.max(0, now - player.ticked));
  const playhead = player.playhead + passed / player.slowdown;
  if (player.mode === "teach" && !player.taught && playhead >= race.backOff && race.arrived >= race.backOff) {
    return { ...player, phase: "paused", playhead: race.backOff, taught: true };
  }
  if (race.done && playhead >= race.total) return settle(player, race);
  return { ...player, playhead: Math.max(player.playhead, Math.min(playhead, race.arrived)), ticked: now };
}

function isAtFirstBackOff({ mode, taught, playhead }, race) {
  return mode === "teach" && taught && playhead === race.backOff;
}

function chooseMode(player, race, mode, now) {
  const chosen = { ...player, mode };
  if (player.phase === "empty") return chosen;
  if (mode === "live") return settle(chosen, race);
  if (mode === "step") return { ...chosen, phase: "paused", playhead: player.playhead ?? 0 };
  if (player.still && player.phase === "paused") return { ...chosen, slowdown: paceOf(chosen, race) };
  if (player.still && player.phase !== "playing") return chosen;
  if (mode === "auto" && !race.done && judge(race) === 1) return settle(chosen, race);
  return player.playhead === null ? startOver(chosen, race, now) : resume(chosen, race, now);
}

function resume(player, race, now) {
  return { ...player, phase: "playing", slowdown: paceOf(player, race), ticked: now };
}

/** Play, pause, play again: what the one button does now. */
function toggle(player, race, now) {
  if (player.phase === "empty") return player;
  if (player.phase === "settled") return startOver(player, race, now);
  if (player.phase === "paused" && player.mode !== "step") return resume(player, race, now);
  if (player.mode === "step") return startOver(player, race, now);
  return { ...player, phase: "paused", playhead: player.playhead ?? race.arrived };
}

/** One pass further, of whichever lane's next pass was done first; `direction` -1 takes the last one back. */
function stepBy(player, race, direction) {
  if (player.phase === "empty") return player;
  const at = player.playhead ?? race.arrived;
  const moments = race.ends.flat().filter((moment) => (moment - at) * direction > 0 && moment <= race.arrived);
  const next = direction > 0 ? Math.min(...moments) : Math.max(0, ...moments);
  if (race.done && next >= race.total) return settle(player, race);
  return { ...player, phase: "paused", playhead: Number.isFinite(next) ? next : at };
}
