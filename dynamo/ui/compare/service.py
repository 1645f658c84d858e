"""What the page does on a visitor's behalf: answer, decode again, audit, load, show.

These are plain methods, mostly generators of strings, that know no component. Only one run of the model goes
on at a time, as two on one machine would falsify each other's clocks: Gradio's queue ensures that, and the
lock here covers the moment in which a cancelled run has not quite ended, and calls that bypass the queue.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from dynamo.common.validation import short_repr
from dynamo.sampling.options import SamplingOptions
from dynamo.spaces.limits import UNLIMITED, Limits
from dynamo.trace.joint_line import JointLine
from dynamo.trace.ndjson import PassLine, Trace, read_runs
from dynamo.ui.compare.chat import LANES, Chat
from dynamo.ui.compare.figures import audit_figures, strip_row
from dynamo.ui.compare.link import Link, read_link
from dynamo.ui.compare.pair import OWN_LOOP, ModelPair, Opinion
from dynamo.ui.compare.presenter import Race, RaceView, RecordedRun, Throttle, most_telling
from dynamo.ui.compare.settings import Settings
from dynamo.ui.server.limits import LONGEST_FILE, Busy, Pace
from dynamo.ui.server.store import RunStore

LOCK_SECONDS = 30.0
MOST_SEEKERS = 4  # of a profile, that wait for the model in a thread each
MOST_SPREAD = 16  # races that are kept to be timed again
STRIP_THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
READY = "Press Generate: both models answer the same prompt, each at its own measured pace."
NO_ANSWER = "There is no answer yet; press Generate first."
LOADED = "That starts a new chat."


class PageService:
    """One pair at a time, its store of runs, and what visitors may do with them."""

    def __init__(self, pair: ModelPair, limits: Limits = UNLIMITED):
        self.pair = pair
        self.limits = limits
        self.pace = Pace()
        self.store = RunStore()
        self.swaps = 0
        self._speeds: dict[tuple[str, str], dict[str, float]] = {}
        self._spread: dict[str, tuple[Race, str]] = {}  # races to be timed again, by their DynaMo lane's run
        self._model = threading.Lock()
        self._profile: tuple[ModelPair, str] | None = None
        self._profile_seekers = threading.Semaphore(MOST_SEEKERS)

    def swap(self, pair: ModelPair) -> None:
        """Another pair from the next run on; one in progress keeps its engines to its end."""
        self.pair, self._profile, self._spread = pair, None, {}
        self.swaps += 1

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nothing else runs meanwhile. Raises Busy where the model does not get free in time.

        A plain lock, as a generator may be closed by another thread than ran it.
        """
        if not self._model.acquire(timeout=LOCK_SECONDS):
            raise Busy("The model is busy with another visitor's run; try again in a moment.")
        try:
            yield
        finally:
            self._model.release()

    # ---- runs

    def answer(
        self, chat: Chat, prompt: str, settings: Settings, opponent: str = OWN_LOOP
    ) -> Iterator[RaceView]:
        """One turn of both lanes."""
        pair = self.pair
        race = self._race(pair, pair.lanes(chat, prompt, settings, opponent))
        yield from self._run(race.views())
        self._note_speeds(pair, race, opponent)
        if race.rounds():
            newest = list(self._spread.items())[1 - MOST_SPREAD :]
            self._spread = {**dict(newest), race.lanes["dynamo"].header.run: (race, opponent)}
        if pair is not self.pair:  # a swap may come at any moment, and the race keeps its engines in memory
            self._spread = {}

    def time_again(self, chat: Chat) -> Iterator[RaceView]:
        """The last turn once more, unseen, if the times of its passes spread too far for a ratio; once, and
        only as long as its pair is loaded."""
        pair = self.pair
        if not chat or not (found := self._spread.pop(chat.dynamo[-1].header.run, None)):
            return
        race, opponent = found
        with closing(self._run(race.time_again())) as views:
            for view in views:
                if self.pair is not pair:
                    return
                yield view
        self._note_speeds(pair, race, opponent)

    def _note_speeds(self, pair: ModelPair, race: Race, opponent: str) -> None:
        speeds = {kind: lane.tokens_per_second for kind, lane in race.lanes.items()}
        if opponent == OWN_LOOP and all(speeds.values()):
            self._speeds[_loaded_as(pair)] = speeds

    def speeds(self, name: str | None = None, quantised: str | None = None) -> Mapping[str, float]:
        """Tokens per second of model time of a pair's last whole answer here, by lane; empty before it.

        name, quantised: of the pair that is loaded where they are not given; quantised "": in full.
        """
        loaded = _loaded_as(self.pair)
        return self._speeds.get((name or loaded[0], loaded[1] if quantised is None else quantised), {})

    def decode_again(self, chat: Chat, settings: Settings, opponent: str = OWN_LOOP) -> Iterator[RaceView]:
        """The last turn at other settings, same prompt and seed. Both lanes run, as only clocks of one run
        can be compared.
        """
        _check_answered(chat, self.pair)
        settings = replace(settings, seed=chat.last_seed)
        yield from self.answer(chat.without_last(), chat.last_prompt, settings, opponent)

    def lanes_run(self, prompt: str, settings: Settings, opponent: str = OWN_LOOP) -> dict[str, RecordedRun]:
        """A first turn run to its end unseen: for duels and programs."""
        pair = self.pair
        race = self._race(pair, pair.lanes(Chat(), prompt, settings, opponent))
        for _ in self._run(race.whole()):
            pass
        return race.lanes

    def lane_run(self, chat: Chat, prompt: str, settings: Settings, kind: str) -> RecordedRun:
        """One lane of one turn, run to its end unseen."""
        lane = self.pair.lanes(chat, prompt, settings, only=(kind,))[kind]
        for _ in self._passes(lane):
            pass
        return lane

    def follow(self, prompt: str, settings: Settings, kind: str) -> Iterator[RecordedRun]:
        """One lane of a first turn while it runs: the lane again and again, at most every few hundredths."""
        if kind not in LANES:
            raise ValueError(f"lane: expected one of {', '.join(LANES)}, got {short_repr(kind)}")
        lane = self.pair.lanes(Chat(), prompt, settings, only=(kind,))[kind]
        throttle = Throttle()
        for _ in self._passes(lane):
            if throttle.is_due():
                yield lane
        yield lane

    def _passes(self, lane: RecordedRun) -> Iterator[PassLine]:
        with self.exclusive(), self.pace.run(), closing(lane.steps) as steps:
            for record in steps:
                yield lane.take(record)
        lane.end()

    def _race(self, pair: ModelPair, lanes: dict[str, RecordedRun]) -> Race:
        return Race(lanes, store=self.store, settle=pair.settle)

    def _run(self, views: Iterator[RaceView]) -> Iterator[RaceView]:
        with self.exclusive(), self.pace.run(), closing(views):
            yield from views

    # ---- the quality dial

    def strip(self, chat: Chat, settings: Settings) -> Iterator[str]:
        """The last prompt at seven thresholds, a line of NDJSON more with each."""
        pair = self.pair
        _check_answered(chat, pair)
        before, prompt = chat.without_last(), chat.last_prompt
        wire = json.dumps({"thresholds": STRIP_THRESHOLDS}) + "\n"
        yield wire
        for threshold in STRIP_THRESHOLDS:
            options = replace(settings.options, threshold=threshold)
            at = replace(settings, options=options, seed=chat.last_seed)
            lane = pair.lanes(before, prompt, at, only=("dynamo",))["dynamo"]
            passes = list(self._passes(lane))
            row = strip_row(threshold, lane, passes, pair.audit)
            wire += json.dumps(row) + "\n"
            yield wire
        yield wire + '{"done":true}\n'

    # ---- the drift audit

    def audit(self, chat: Chat) -> str:
        """What the base thinks of the last answers, JSON for the audit card; "" without one."""
        pair = self.pair
        if not chat or pair.audit is None or chat.last_model != pair.name:
            return ""
        opinions = {lane: self._opinion(pair, chat, lane) for lane in LANES}
        trace = chat.dynamo[-1]
        options = trace.header.options
        top_k = int(options.get("top_k", SamplingOptions().top_k))
        opinion = opinions["dynamo"]
        texts = [text for line in trace.passes for text in line.texts]
        tokens = [
            {"text": text, "p": round(math.exp(log_p), 6), "rank": rank}
            for text, log_p, rank in zip(texts, opinion.log_probabilities, opinion.ranks, strict=True)
        ]
        figures = {lane: audit_figures(opinions[lane], top_k) for lane in LANES}
        return json.dumps({"run": trace.header.run, "top_k": top_k, "tokens": tokens, **figures})

    def _opinion(self, pair: ModelPair, chat: Chat, lane: str) -> Opinion:
        trace = (chat.base if lane == "base" else chat.dynamo)[-1]
        messages = [*chat.without_last().messages(lane), {"role": "user", "content": chat.last_prompt}]
        reply = trace.tokens
        with self.exclusive():
            ids = pair.encode(messages, pair.max_length - len(reply))
            return pair.audit(ids, reply)

    # ---- looking closer

    def profile(self) -> str | None:
        """Where the time of a pass goes, measured once in a run of its own; JSON, None if not offered.

        Raises Busy where so many wait for it that another would leave the run in progress without a thread.
        """
        pair, known = self.pair, self._profile
        if pair.profile is None:
            return None
        if known is not None and known[0] is pair:
            return known[1]
        if not self._profile_seekers.acquire(blocking=False):
            raise Busy("The models are being profiled for others; try again in a moment.")
        try:
            with self.exclusive():
                known = self._profile
                if known is None or known[0] is not pair:
                    known = self._profile = pair, json.dumps(pair.profile())
                return known[1]
        finally:
            self._profile_seekers.release()

    def find_joint(self, run: Any, index: Any) -> JointLine | None:
        """A stored joint by what a browser sent; None for what is not known."""
        return self.store.get_joint(run, index) if isinstance(run, str) and type(index) is int else None

    # ---- recordings

    def load(self, path: Path, status: str = LOADED, *, keep: bool = False) -> RaceView:
        """A trace file for the panes: its last run of each lane, marked as a recording.

        Raises ValueError naming file, line and fault.
        """
        most = self.limits.upload_bytes(LONGEST_FILE)
        if path.stat().st_size > most:
            raise ValueError(f"trace: {path.name} is larger than {most:,} bytes")
        try:
            with path.open(encoding="utf-8", newline="\n") as file:
                runs = read_runs(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"trace: {path.name}: {error}") from None
        last = {trace.header.lane: trace for trace in runs if trace.header.lane in LANES}
        if not last:
            raise ValueError(f"trace: {path.name} holds no run of the lanes {' and '.join(LANES)}")
        return self._recorded(last, status, keep)

    def open_link(self, lines: Any, names: Sequence[str]) -> tuple[RaceView, Link]:
        """A shared race, and what the page's controls are set to. Raises ValueError in a sentence."""
        link = read_link(lines, names, self.pair)
        self.limits.check(link.prompt, link.settings.max_new_tokens)
        answered = {lane: trace for lane, trace in link.traces.items() if trace.passes}
        return self._recorded(answered, link.status), link

    def _recorded(self, traces: Mapping[str, Trace], status: str, keep: bool = False) -> RaceView:
        shown = {lane: self._adopt(trace, keep) for lane, trace in traces.items()}
        wires = {lane: trace.wire for lane, trace in shown.items()}
        best = most_telling(shown["dynamo"]) if "dynamo" in shown else None
        inspector = "" if best is None else self.store.get_pass(shown["dynamo"].header.run, best) or ""
        return RaceView(wires.get("base", ""), wires.get("dynamo", ""), inspector, status)

    def _adopt(self, trace: Trace, keep: bool) -> Trace:
        """Under an id of our own: nobody may overwrite a run, or guess one, by naming it in a file."""
        recorded = trace.header.recorded or "loaded from a file"
        trace = replace(trace, header=replace(trace.header, run=uuid4().hex, recorded=recorded))
        self.store.add(trace, keep=keep)
        return trace


def _loaded_as(pair: ModelPair) -> tuple[str, str]:
    """What a speed belongs to: the pair and its quantisation."""
    return pair.name, pair.footprint.quantised if pair.footprint else ""


def _check_answered(chat: Chat, pair: ModelPair) -> None:
    if not chat:
        raise ValueError(NO_ANSWER)
    if chat.last_model != pair.name:
        raise ValueError(f"This answer is {chat.last_model}'s, and {pair.name} is loaded now; press Generate")
