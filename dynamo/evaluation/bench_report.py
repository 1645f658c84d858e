"""Tables and pictures of a page of figures, from the results of `bench` and `sweep` that the page names.

A table is what lies between `<!-- bench TABLE RESULT.json -->` and `<!-- end -->`; the result's path is
relative to the page. Rewriting replaces it, so no number is typed by hand. The table `context-picture` is a
picture, which whoever asks draws: this package knows no charts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Draw = Callable[[dict[str, dict[int, float]], Path, str], Path]
PICTURE = "context-picture"
LANES = {
    "generate": "`transformers` `generate` (eager, dynamic cache)",
    "compiled": "`generate`, static cache, compiled",
    "prompt_lookup": "`generate` with prompt lookup",
    "assisted": "`generate` with a draft model",
    "own": "our one-token loop",
    "dynamo": "DynaMo",
    "exact": "DynaMo, exact mode",
    "own_int8": "our one-token loop, int8",
    "dynamo_int8": "DynaMo, int8",
    "own_int4": "our one-token loop, int4",
    "dynamo_int4": "DynaMo, int4",
    "exact_int8": "DynaMo, exact mode, int8",
    "exact_int4": "DynaMo, exact mode, int4",
    "llamacpp": "llama.cpp, the GGUF file that the base is from",
    "ctranslate2": "CTranslate2, float32",
    "ctranslate2_int8": "CTranslate2, int8",
}
# Name: words, the least that is acceptable, the aim.
RATIOS = {
    "own_over_generate": ("own loop / `generate`", "2.0", "3.0"),
    "dynamo_over_own": ("DynaMo / own loop", "–", "–"),
    "dynamo_over_generate": ("DynaMo / `generate`", "3.0", "4.5"),
    "exact_over_own": ("exact mode / own loop", "1.05", "1.3"),
    "compiled_over_generate": ("compiled / eager `generate`", "–", "–"),
    "dynamo_over_compiled": ("DynaMo / compiled `generate`", "–", "–"),
    "assisted_over_generate": ("assisted / `generate`", "–", "–"),
    "own_int8_over_own": ("own loop, int8 / own loop", "–", "–"),
    "dynamo_int8_over_dynamo": ("DynaMo, int8 / DynaMo", "–", "–"),
    "own_int4_over_own": ("own loop, int4 / own loop", "–", "–"),
    "dynamo_int4_over_dynamo": ("DynaMo, int4 / DynaMo", "–", "–"),
    "exact_int8_over_own_int8": ("exact mode / own loop, int8", "–", "–"),
    "exact_int4_over_own_int4": ("exact mode / own loop, int4", "–", "–"),
    "own_over_llamacpp": ("own loop / llama.cpp", "–", "–"),
    "dynamo_over_llamacpp": ("DynaMo / llama.cpp", "–", "–"),
    "exact_over_llamacpp": ("exact mode / llama.cpp", "–", "–"),
    "own_int8_over_llamacpp": ("own loop, int8 / llama.cpp", "–", "–"),
    "dynamo_int8_over_llamacpp": ("DynaMo, int8 / llama.cpp", "–", "–"),
    "exact_int8_over_llamacpp": ("exact mode, int8 / llama.cpp", "–", "–"),
    "own_int4_over_llamacpp": ("own loop, int4 / llama.cpp", "1.0", "1.5"),
    "dynamo_int4_over_llamacpp": ("DynaMo, int4 / llama.cpp", "1.1", "2.0"),
    "exact_int4_over_llamacpp": ("exact mode, int4 / llama.cpp", "1.1", "1.7"),
    "own_over_ctranslate2": ("own loop / CTranslate2, float32", "1.0", "1.3"),
    "dynamo_over_ctranslate2": ("DynaMo / CTranslate2, float32", "–", "–"),
    "own_int8_over_ctranslate2_int8": ("own loop / CTranslate2, both int8", "1.0", "1.3"),
    "dynamo_int8_over_ctranslate2_int8": ("DynaMo / CTranslate2, both int8", "–", "–"),
    "conversion": ("conversion: (DynaMo / own loop) / tokens per pass", "0.65", "0.8"),
    "sampler_share": ("sampler / forward pass (profiled)", "at most 0.15", "0.05"),
}
COLUMNS = {
    "generate": "`generate`",
    "own": "own loop",
    "dynamo": "DynaMo",
    "exact": "exact mode",
    "llamacpp": "llama.cpp",
}
SPLIT = {"base": "own loop", "dynamo": "DynaMo"}
MARK = re.compile(r"(<!-- bench (\S+) (\S+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)


def rewrite(page: Path, draw: Draw | None = None) -> int:
    """Rewrite every table of a page; returns how many there are. Raises ValueError if one cannot be made.

    draw: makes a picture of lines, y by x by name, in a folder; without one, pictures stay as they are.
    """
    text, count = MARK.subn(lambda found: _section(page, found, draw), page.read_text(encoding="utf-8"))
    if not count:
        raise ValueError(f"report: {page} has no '<!-- bench TABLE RESULT.json -->' to write at")
    page.write_text(text, encoding="utf-8")
    return count


def _section(page: Path, found: re.Match, draw: Draw | None) -> str:
    opening, name, source, _, closing = found.groups()
    if name == PICTURE and draw is None:
        return found.group()
    if name not in (*TABLES, PICTURE):
        raise ValueError(f"report: {page} names the table {name}; there are {', '.join(TABLES)}")
    try:
        result = json.loads((page.parent / source).read_text(encoding="utf-8"))
        made = _picture(page, Path(source).stem, result, draw) if name == PICTURE else TABLES[name](result)
        return f"{opening}{made}\n{closing}"
    except FileNotFoundError:
        raise ValueError(f"report: {page} names {source}, which does not exist") from None
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"report: {source} is no result with {name}: {error!r}") from error


def _picture(page: Path, name: str, result: Result, draw: Draw) -> str:
    speeds = result["context_tokens_per_second"]
    by_lane = {
        LANES[lane].replace("`", ""): {int(length): row[lane] for length, row in speeds.items()}
        for lane in LANES
        if lane in next(iter(speeds.values()), {})
    }
    file = draw(by_lane, page.parent / "images", name)
    return f"![Tokens a second by length of context]({file.relative_to(page.parent).as_posix()})"


def machine(result: Result) -> str:
    """What it was measured on, how, and what was left out: a sentence each."""
    on = result["machine"]
    lines = [
        f"{on['device']}, {on['threads']} threads, {on['dtype']}, torch {on['torch']}, transformers "
        f"{on['transformers']}, {on['date']}; {result['runs']} runs of {result['prompts']} prompts, at most "
        f"{result['max_new_tokens']} tokens, threshold {result['options']['threshold']}, top-k "
        f"{result['options']['top_k']}.",
        f"Peak memory of the process: {result['peak_memory_mb']:.0f} MB. Memory bandwidth, measured in the "
        f"same run: {result['bandwidth_gb_per_second']:.1f} GB/s.",
    ]
    lines += [f"Left out: {LANES.get(name, name)} ({why})." for name, why in result.get("lost", {}).items()]
    return "\n".join(lines)


def lanes(result: Result) -> str:
    rows = [
        [
            LANES[name] + (f", threshold {result['options']['threshold']}" if name == "dynamo" else ""),
            f"{lane['tokens_per_second']:.0f}",
            f"± {lane['spread']:.0f}",
            f"{lane['tokens_per_forward']:.2f}",
            f"{lane['ms_per_pass']:.2f}",
            f"{lane['prefill_ms']:.1f}",
            _share(lane),
        ]
        for name, lane in ((name, result["lanes"][name]) for name in LANES if name in result["lanes"])
    ]
    return _table(
        ["lane", "tokens/s", "spread of runs", "tokens per pass", "ms per pass", "prompt, ms",
         "share of memory bandwidth"],
        rows,
    )  # fmt: skip


def _share(lane: Result) -> str:
    return "–" if lane["share_of_bandwidth"] is None else f"{100 * lane['share_of_bandwidth']:.0f} %"


def ratios(result: Result) -> str:
    rows = []
    for name, (words, least, aim) in RATIOS.items():
        if name in result:
            between = result["intervals"].get(name)
            interval = f"{between[0]:.2f} to {between[1]:.2f}" if between else ""
            rows.append([words, f"{result[name]:.2f}", interval, least, aim])
    return _table(["ratio", "measured", "95 % over prompts", "at least", "aim"], rows)


def split(result: Result) -> str:
    parts = list(result["split"]["dynamo"]["parts"])
    rows = [
        [words, *(f"{result['split'][lane]['parts'][part]:.3f}" for part in parts),
         f"{result['split'][lane]['pass_ms']:.3f}"]
        for lane, words in SPLIT.items()
    ]  # fmt: skip
    return _table(["", *parts, "sum"], rows)


def sweep(result: Result) -> str:
    """Of a `sweep`: each threshold's gain and what it costs, against the base's own replies."""
    base = result["base"]
    length = base["tokens"] / base["replies"]
    rows = []
    for point in result["points"]:
        quality, speed, drift = point["quality"], point["speed_up"], point["drift"]
        points = {name: f"{100 * value:+.1f}" for name, value in drift.items()}
        rows.append([
            f"{point['threshold']:g}",
            f"{point['tokens_per_forward']['value']:.2f}",
            f"{speed['value']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})",
            f"{points['value']} ({points['low']} to {points['high']})",
            *(f"{quality[name]['value'] / base['quality'][name]['value']:.2f}"
              for name in ("distinct_2", "repetition")),
            f"{point['tokens'] / point['replies'] / length:.2f}",
        ])  # fmt: skip
    return _table(
        ["threshold", "tokens per pass", "speed-up (95 %)", "drift, points (95 %)", "distinct bigrams",
         "repetition", "length"],
        rows,
    )  # fmt: skip


# Of tools/bench_page.py: words, what is acceptable.
PAGE = {
    "bytes_before_first_paint": ("bytes over the wire before the first paint", "at most 400,000"),
    "first_paint_ms": ("first paint, ms", "at most 1,000"),
    "both_panes_ms": ("both lanes drawn, ms", "at most 1,500"),
    "updates_per_second": ("visible updates a second, of 30 passes", "at least 20"),
    "bytes_per_pass": ("bytes a pass", "at most 1,000"),
    "click_ms": ("from a click on a chunk to its joint, ms", "at most 100"),
}


def page(result: Result) -> str:
    """How the page opens and draws, and what it shows of a race that is disturbed."""
    on, race = result["machine"], result["disturbed"]
    where = (
        f"{on['device']}, load average {result['load']} before the run, Chromium {result['chromium']}, "
        f"{on['date']}."
    )
    rows = [[words, f"{result[name]:,}", limit] for name, (words, limit) in PAGE.items()]
    count = race["redecodes"]
    rows += [
        [f"of {count} disturbed decodings: shown as faster than tokens per pass",
         str(race["above_tokens_per_pass"]), "0"],
        ["no speed-up shown, as the clocks were disturbed", str(race["refused_as_disturbed"]),
         f"at most {count // 10}"],
        [f"within 15 % of `bench` for the same answer, of {race['shown']} shown",
         str(race["within_15_percent_of_bench"]), "all"],
    ]  # fmt: skip
    return f"{where}\n\n{_table(['', 'measured', 'acceptable'], rows)}"


def _curve(field: str, label: str, digits: int) -> Callable[[Result], str]:
    def curve(result: Result) -> str:
        rows = result[field]
        if not rows:
            raise KeyError(field)
        columns = list(next(iter(rows.values())))
        names = [_column(name) for name in columns]
        return _table(
            [label, *names],
            [[count, *(f"{row[name]:.{digits}f}" for name in columns)] for count, row in rows.items()],
        )

    return curve


def _column(name: str) -> str:
    """A lane's name in few words; that of a part of a pass as it is."""
    lane, *kept = name.split("_")
    return ", ".join([COLUMNS[lane], *kept]) if lane in COLUMNS else name


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


TABLES: dict[str, Callable[[Result], str]] = {
    "machine": machine,
    "lanes": lanes,
    "ratios": ratios,
    "split": split,
    "page": page,
    "sweep": sweep,
    "rows": _curve("rows_tokens_per_second", "rows", 0),
    "context": _curve("context_ms", "context", 2),
    "context-speed": _curve("context_tokens_per_second", "context", 0),
    "top-k": _curve("top_k_ms", "k", 3),
    "threads": _curve("threads_ms", "threads", 2),
}
