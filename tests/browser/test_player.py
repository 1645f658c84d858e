"""When a race's passes are on screen: the player's arithmetic, on a clock that the test turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from races import answered, lane, long_race, short_race
from scipy import stats

from dynamo.evaluation.text_measures import distinct, repeated
from dynamo.trace.ndjson import PassLine
from dynamo.trace.recorder import RunCounts, speed_up

PLAYER = ("race/clocks.js", "race/player.js")
READABLE = {1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300}


@pytest.fixture
def play(arithmetic):
    """Runs statements of JavaScript that know `race`, `player` and `log`; returns what they logged."""

    def play(lanes, script, **known):
        names = ", ".join(["lanes", *known])
        body = f"let race = raceOf(lanes), player = newPlayer(); const log = []; {script}; return log;"
        return arithmetic(f"(({names}) => {{ {body} }})(...args)", lanes, *known.values(), files=PLAYER)

    return play


@pytest.mark.parametrize("base_pass", [0.4, 2.0, 5.0, 16.0, 24.0])
def test_a_short_race_is_slowed_until_a_base_pass_takes_a_tenth_of_a_second(play, base_pass):
    lanes = [lane("base", [base_pass] * 20, prefill=base_pass), lane("dynamo", [base_pass] * 7, 3)]
    script = "player = begin(player, race, 'live', 0); log.push(player.phase, player.slowdown)"
    phase, slowdown = play(lanes, script)
    assert phase == "playing"
    assert slowdown in READABLE
    assert 60 <= slowdown * base_pass <= 100


@pytest.mark.parametrize(("base_pass", "passes"), [(26.0, 3), (120.0, 1)])
def test_a_base_of_fewer_than_forty_passes_a_second_is_followed_live(play, base_pass, passes):
    """From its first decoded passes on, and from the first alone where that is long enough."""
    lanes = [lane("base", [base_pass] * passes, state="running"), lane("dynamo", [99.0], state="running")]
    script = "player = begin(player, race, 'live', 0); log.push(player.phase, player.playhead)"
    assert play(lanes, script) == ["following", None]


def test_a_race_of_which_nothing_is_known_waits_and_shows_nothing(play):
    lanes = [lane("base", [], state="running"), lane("dynamo", [], state="running")]
    script = "player = begin(player, race, 'live', 0); log.push(player.phase, player.playhead)"
    assert play(lanes, script) == ["waiting", 0]


def test_one_slow_pass_does_not_make_a_quick_base_live(play):
    hesitant = [lane("base", [80.0], state="running"), lane("dynamo", [9.0], state="running")]
    script = """
      player = begin(player, race, "live", 0); log.push(player.phase);
      race = raceOf(whole);
      player = arrive(player, race, 0); log.push(player.phase, player.slowdown);
    """
    assert play(hesitant, script, whole=short_race()) == ["waiting", "playing", 20]


@pytest.mark.parametrize(
    ("end", "phase", "all_shown"), [("error", "settled", True), ("cancelled", "paused", False)]
)
def test_stop_freezes_what_is_seen_and_a_failure_shows_all_that_came(play, end, phase, all_shown):
    """Text went on appearing for seconds after Stop."""
    running = short_race(state="running")
    script = """
      player = begin(player, race, "live", 0); player = tick(player, race, 200);
      const seen = player.playhead; log.push(player.phase);
      player = arrive(player, raceOf(stopped), 300); log.push(player.phase, player.playhead === seen);
      player = tick(player, raceOf(stopped), 900); log.push(player.playhead === seen, player.playhead);
    """
    begun, now, kept, still_kept, playhead = play(running, script, stopped=short_race(end=end))
    assert (begun, now) == ("playing", phase)
    assert kept == still_kept == (not all_shown) and (playhead is None) == all_shown


def test_teaching_pace_shows_a_pass_and_a_half_a_second(play):
    script = """
      player = begin({ ...player, mode: "teach" }, race, "live", 0);
      let now = 0;
      while (player.phase === "playing") player = tick(player, race, (now += 16));
      log.push(player.slowdown, now, race.total);
    """
    lanes = [lane("base", [5.0] * 30), lane("dynamo", [7.0] * 12, 3)]
    slowdown, took, total = play(lanes, script)
    assert 1.5 <= 1000 / (7.0 * slowdown) <= 2 and took == pytest.approx(slowdown * total, rel=0.1)


def test_teaching_pace_waits_until_it_knows_how_long_a_pass_takes(play):
    """It ran at model speed to where it stops."""
    base, dynamo = short_race(state="running")
    unknown = {**dynamo, "passes": dynamo["passes"][:1]}
    script = """
      player = begin({ ...player, mode: "teach" }, race, "live", 0); log.push(player.phase);
      player = arrive(player, raceOf(more), 0); log.push(player.phase, player.slowdown);
    """
    assert play([base, unknown], script, more=[base, dynamo]) == ["waiting", "playing", 80]


@pytest.mark.parametrize("exact", [False, True])
def test_teaching_pace_stops_once_where_a_pass_backed_off_or_rejected_a_draft_first(play, exact):
    """In exact mode, SmolLM2's default, nothing backs off, and it ran to the end."""
    base, dynamo = lane("base", [5.0] * 30), answered()
    if exact:
        for step in dynamo["passes"]:
            step |= {"exact": True, "rejected": [" no"] if step.pop("backoffs", None) else []}
    script = """
      player = begin({ ...player, mode: "teach" }, race, "live", 0);
      const play = () => {
        for (let now = 0; player.phase === "playing"; now += 16) player = tick(player, race, now);
      };
      play(); log.push(player.phase, doneBy(race.ends[1], player.playhead), isAtFirstBackOff(player, race));
      log.push(paceInWords(player, race, lanes).split(":")[0]);
      player = toggle(player, race, 0); play(); log.push(player.phase);
    """
    said = f"Stopped at the first pass that {'rejected a draft' if exact else 'backed off'}"
    assert play([base, dynamo], script) == ["paused", 2, True, said, "settled"]


def test_a_tab_that_was_hidden_for_a_minute_goes_on_where_it_was(play):
    script = """
      player = begin(player, race, "live", 0);
      player = tick(player, race, 100); const seen = player.playhead;
      player = tick(player, race, 60_000); log.push(player.phase, (player.playhead - seen) * player.slowdown);
    """
    phase, moved = play(short_race(), script)
    assert phase == "playing" and 0 < moved <= 250


def test_the_playhead_waits_for_the_slower_lane_to_arrive(play):
    base, dynamo = short_race(state="running")
    dynamo["passes"] = dynamo["passes"][:3]
    script = """
      player = begin(player, race, "live", 0);
      for (let now = 0; now < 9000; now += 16) player = tick(player, race, now);
      log.push(player.phase, player.playhead, race.arrived);
    """
    phase, playhead, arrived = play([base, dynamo], script)
    assert phase == "playing"
    assert playhead == arrived == pytest.approx(19.0 + 7.0 + 7.0)


def test_every_step_shows_one_pass_more_and_back_takes_it_away(play):
    script = """
      const shown = () => race.ends.reduce((sum, ends) => sum + doneBy(ends, player.playhead), 0);
      player = chooseMode(begin(player, race, "live", 0), race, "step", 0); player = toggle(player, race, 0);
      log.push(shown());
      while (player.phase === "paused") { player = stepBy(player, race, 1); log.push(shown()); }
      player = stepBy(player, race, -1); log.push(shown());
    """
    lanes = [lane("base", [5.0] * 6), lane("dynamo", [7.3] * 3, 3, prefill=19.0)]
    assert play(lanes, script) == [*range(12), 10]


@pytest.mark.parametrize("mode", ["auto", "live", "teach", "step"])
@pytest.mark.parametrize("kind", ["live", "recording", "aside"])
def test_with_little_motion_nothing_plays_until_play_is_pressed(play, mode, kind):
    script = """
      player = begin({ ...newPlayer(true), mode }, race, kind, 0); log.push(player.phase);
      player = arrive(player, race, 0); player = chooseMode(player, race, "teach", 0); log.push(player.phase);
      player = toggle(player, race, 0); log.push(player.phase);
    """
    begun, chosen, pressed = play(short_race(), script, mode=mode, kind=kind)
    assert "playing" not in (begun, chosen)
    assert pressed == "playing"


def test_a_pace_chosen_while_it_waits_for_play_is_the_one_that_is_told(play):
    script = """
      player = chooseMode(newPlayer(true), race, "step", 0); player = begin(player, race, "live", 0);
      player = stepBy(player, race, 1); player = chooseMode(player, race, "teach", 0);
      log.push(player.phase, player.slowdown);
    """
    assert play(short_race(), script) == ["paused", 80]


def test_a_recording_plays_by_itself_and_what_is_only_looked_at_does_not(play):
    script = "for (const kind of ['recording', 'aside']) log.push(begin(player, race, kind, 0).phase)"
    assert play(short_race(), script) == ["playing", "settled"]
    assert play(long_race(), script) == ["playing", "settled"]


def test_one_slow_prompt_does_not_hold_up_a_slowed_race(play):
    lanes = [lane("base", [5.0] * 20, prefill=900.0), lane("dynamo", [7.0] * 9, 3, prefill=10.0)]
    (seconds,) = play(lanes, "log.push((900 - 10) * slowdownFor(race) / 1000)")
    assert seconds <= 3


def test_no_order_of_events_shows_what_has_not_arrived(play):
    script = """
      const modes = ["auto", "live", "teach", "step"];
      let seed = 1, now = 0;
      const dice = (sides) => (seed = (seed * 48271) % 2147483647) % sides;
      const upTo = (n, m) => lanes.map((lane, i) => {
        const passes = lane.passes.slice(0, [n, m][i]);
        const all = passes.length === lane.passes.length;
        return { ...lane, passes, state: all ? "done" : "running", end: all ? "eos" : null };
      });
      for (let round = 0; round < 60; round++) {
        let counts = [1, 1];
        race = raceOf(upTo(...counts));
        player = begin(player, race, ["live", "recording", "aside"][dice(3)], now);
        for (let i = 0; i < 120; i++) {
          now += dice(400);
          const what = dice(8);
          if (what === 0) {
            counts = counts.map((n) => n + dice(6));
            race = raceOf(upTo(...counts)); player = arrive(player, race, now);
          } else if (what === 1) player = chooseMode(player, race, modes[dice(4)], now);
          else if (what === 2) player = toggle(player, race, now);
          else if (what === 3) player = stepBy(player, race, dice(2) ? 1 : -1);
          else player = tick(player, race, now);
          const { phase, playhead } = player;
          const fits = playhead === null ? ["settled", "following"] : ["playing", "paused", "waiting"];
          const settled = playhead === null && race.done;
          const arrived = playhead === null || (playhead >= 0 && playhead <= race.arrived);
          if (!arrived || !fits.includes(phase) || settled !== (phase === "settled"))
            log.push({ ...player, arrived: race.arrived });
        }
      }
    """
    assert play(short_race(), script) == []


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3], [1, 2, 1, 2, 1, 2, 3, 4], [5] * 9])
def test_page_and_evaluation_count_variety_alike(arithmetic, ids):
    passes = [{"ids": ids[i : i + 3]} for i in range(0, len(ids), 3)]
    told = arithmetic("varietyOf(args[0])", passes)
    for share, (count, of) in ((told["distinct"], distinct([ids])), (told["repeated"], repeated(ids))):
        assert share == (pytest.approx(count / of) if of else None)


def test_clocks_compare_lanes_of_one_message_only_and_both_or_none(arithmetic):
    base, dynamo = short_race()

    def clocks(**lanes):
        counts = "{ base: args[0].base.passes.length, dynamo: args[0].dynamo.passes.length }"
        return arithmetic(f"clocksOf(args[0], {counts})", lanes, files=PLAYER)

    measured = clocks(base=base, dynamo=dynamo)
    assert measured["speedUp"] == pytest.approx((3 / 7) / (1 / 5))
    assert measured["gain"] == pytest.approx(3)
    other = {**dynamo, "header": {**dynamo["header"], "prompt": "another message"}}
    assert clocks(base=base, dynamo=other) is None
    again = {**dynamo, "header": {**dynamo["header"], "options": {"threshold": 0.8}}}
    assert clocks(base=base, dynamo=again) is None, "it was timed in another run"
    assert clocks(base={**base, "passes": []}, dynamo=dynamo) is None
    assert clocks(base={**base, "header": {**base["header"], "lane": "blind"}}, dynamo=dynamo) is None


@pytest.mark.parametrize(
    ("base_ms", "dynamo_ms", "base_tokens", "engine", "shown"),
    [
        ([5.0] * 30, [7.0] * 12, 1, "loop", 15 / 7),
        ([5.0] * 15, [7.0] * 12, 1, "loop", None),  # too few tokens
        ([5.0] * 30, [7.0] * 5, 1, "loop", None),
        ([5.0] * 30, [4.0] * 12, 1, "loop", None),  # a pass of DynaMo cheaper than the base's: disturbed
        ([50.0] * 30, [7.0] * 12, 1, "threshold-1", None),
        ([50.0] * 30, [7.0] * 12, 1, "generate", 150 / 7),  # another loop may be that slow
    ],
)
def test_page_and_programs_show_the_same_ratios(arithmetic, base_ms, dynamo_ms, base_tokens, engine, shown):
    """Headlines once read 6.82x at 2.88 tokens a pass, and 1.59x over nine tokens."""
    lanes = {
        "base": lane("base", base_ms, base_tokens, engine=engine),
        "dynamo": lane("dynamo", dynamo_ms, 3),
    }
    told = arithmetic(
        "clocksOf(args[0], { base: args[0].base.passes.length, dynamo: args[0].dynamo.passes.length })",
        lanes,
        files=PLAYER,
    )
    counts = {
        kind: RunCounts.fold(
            PassLine(
                each["pass"],
                tuple(each["ids"]),
                tuple(each["text"]),
                len(each["ids"]),
                each["ms"] / 1000,
                prefill="prefill" in each,
            )
            for each in made["passes"]
        )
        for kind, made in lanes.items()
    }
    ratio = speed_up(counts["base"], counts["dynamo"], same_loop=engine != "generate")
    assert ratio == (shown and pytest.approx(shown))
    assert told["speedUp"] == (shown and pytest.approx(shown))
    assert bool(told["unshown"]) == (shown is None)


def test_a_ratio_says_how_far_its_passes_spread(arithmetic):
    base, dynamo = lane("base", [4.0, 6.0] * 12), lane("dynamo", [7.0] * 12, 3)
    lanes = {"base": base, "dynamo": dynamo}
    clocks = arithmetic("clocksOf(args[0], { base: 25, dynamo: 13 })", lanes, files=PLAYER)
    speeds = [1 / 4.0, 1 / 6.0] * 12
    error = stats.sem(speeds) / np.mean(speeds)  # of the base's passes, as a share
    assert clocks["spread"] == pytest.approx(2 * error * clocks["speedUp"])
    assert clocks["speedUp"] == pytest.approx(3 / 7 / np.mean(speeds))


def test_a_race_that_was_timed_again_has_the_ratio_of_those_timings(arithmetic):
    base, dynamo = lane("base", [4.0, 6.0] * 12), lane("dynamo", [7.0] * 12, 3)
    base["end"] |= {"timed": [48, 200.0, 0.01]}
    dynamo["end"] |= {"timed": [24, 150.0, 0.02]}
    lanes = {"base": base, "dynamo": dynamo}
    clocks = arithmetic("clocksOf(args[0], { base: 25, dynamo: 13 })", lanes, files=PLAYER)
    assert clocks["speedUp"] == pytest.approx(3 * 150 / 200)
    assert clocks["spread"] == pytest.approx(2 * math.hypot(0.01, 0.02) * clocks["speedUp"])
    faces = arithmetic(
        "facesOf(clocksOf(args[0], args[1]), args[0], args[1])",
        lanes,
        {"base": 25, "dynamo": 13},
        files=PLAYER,
    )
    assert faces["speedNote"].startswith("450 against 200 tok/s, ± ")
    assert "these 72 passes" in faces["speedTitle"]
    partly = arithmetic("clocksOf(args[0], { base: 20, dynamo: 9 })", lanes, files=PLAYER)
    assert partly["speedUp"] != clocks["speedUp"], "while it plays, by what is shown"


@pytest.mark.parametrize("engine", ["", "loop", "constructor", "<b>"])
def test_an_unknown_engine_is_called_our_own_loop(arithmetic, engine):
    assert arithmetic("opponentOf({ engine: args[0] })[1]", engine, files=PLAYER) == "base"
