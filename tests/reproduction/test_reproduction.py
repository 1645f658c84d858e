"""The paper's experiments: what is measured once, what a killed run goes on with, what is reported."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from command_line import run
from conftest import DIALOGUES, tiny_base
from tables import save_pair
from workspaces import counting

from dynamo import load
from dynamo.charts import files
from dynamo.common.files import write_json
from dynamo.data.text import encode_chat
from dynamo.evaluation import perplexity
from dynamo.reproduction import joints, perplexities, sweeps
from dynamo.reproduction.runner import read_result, result_path, run_missing
from dynamo.reproduction.workspace import SETTINGS, Sizes, Workspace, file_fingerprint, settings_hash

SMALL = Sizes(replies=1, documents=2, positions=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("reproduction")
    save_pair(folder / "pair", tokenizer)
    for name in ("train", "held-out"):
        rows = "\n".join(json.dumps({"messages": turns}) for turns in DIALOGUES)
        (folder / f"{name}.jsonl").write_text(rows)
    (folder / "prompts.json").write_text(json.dumps([DIALOGUES[1][:1]]))
    return folder


@pytest.fixture
def workspace(folder, tmp_path, tokenizer):
    return Workspace(
        pair=load(str(folder / "pair")),
        train_data=folder / "train.jsonl",
        validation=folder / "held-out.jsonl",
        folder=tmp_path / "work",
        prompts=[encode_chat(tokenizer, DIALOGUES[1][:1])],
        sizes=SMALL,
    )


# -- what is measured once


def test_a_result_of_the_same_settings_is_not_measured_again(workspace, tmp_path):
    calls = []
    experiments = [counting("one", calls=calls), counting("two", ("steps",), calls=calls)]
    assert run_missing(experiments, workspace, tmp_path) == ["one", "two"]
    assert run_missing(experiments, workspace, tmp_path) == [] and calls == ["one", "two"]
    more_steps = dataclasses.replace(workspace, sizes=dataclasses.replace(SMALL, steps=7))
    assert run_missing(experiments, more_steps, tmp_path) == ["two"], "only what depends on the steps"
    stored = read_result(tmp_path, "two")
    assert stored["settings"]["steps"] == 7 and stored["load"]["cores"] == os.cpu_count()
    newer = dataclasses.replace(experiments[0], version=2)
    assert run_missing([newer], workspace, tmp_path) == ["one"]


def test_a_killed_run_keeps_what_is_done_and_goes_on(workspace, tmp_path):
    calls = []
    killed = [counting("one", calls=calls), counting("two", fails=True)]
    with pytest.raises(KeyboardInterrupt):
        run_missing(killed, workspace, tmp_path)
    assert read_result(tmp_path, "one") and read_result(tmp_path, "two") is None
    assert run_missing([killed[0], counting("two", calls=calls)], workspace, tmp_path) == ["two"]
    assert calls == ["one", "two"]


def test_a_file_that_is_no_result_is_named(workspace, tmp_path):
    path = result_path(tmp_path, "one")
    path.parent.mkdir(parents=True)
    for content in ('{"settings": ', '{"value": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"one\.json"):
            run_missing([counting()], workspace, tmp_path)


def test_every_setting_changes_the_hash_when_what_it_names_changes(workspace, tmp_path, tokenizer):
    other_file = tmp_path / "other.jsonl"
    other_file.write_text('{"text": "hello"}')
    changed = {
        "train": dataclasses.replace(workspace, train_data=other_file),
        "validation": dataclasses.replace(workspace, validation=other_file),
        "other": dataclasses.replace(workspace, other=other_file),
        "prompts": dataclasses.replace(workspace, prompts=[[1, 2, 3]]),
        **{
            each.name: dataclasses.replace(workspace, sizes=dataclasses.replace(SMALL, **{each.name: 99}))
            for each in dataclasses.fields(Sizes)
            if each.name != "drawn"
        },
    }
    changed["dialogues"] = changed["documents"]
    assert set(changed) == set(SETTINGS)
    for name, other in changed.items():
        assert workspace.settings((name,)) != other.settings((name,)), name
    pair = dataclasses.replace(workspace.pair, base=tiny_base(seed=9))
    assert dataclasses.replace(workspace, pair=pair).settings() != workspace.settings()
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})


def test_documents_are_drawn_by_the_seed_or_are_the_first(workspace):
    """Files are often sorted. The first ones have the settings that they had before any could be drawn."""

    def of(**sizes):
        return dataclasses.replace(workspace, sizes=Sizes(**sizes))

    file = list(range(100))
    drawn = of(documents=30).chosen(file)
    assert len(set(drawn)) == 30 and drawn == sorted(drawn) and drawn[-1] > 60
    assert drawn == of(documents=30).chosen(file) != of(documents=30, seed=1).chosen(file)
    assert set(drawn) < set(of(documents=40).chosen(file))
    assert of(documents=30, drawn=False).chosen(file) == file[:30]
    for drawn in (True, False):
        assert (
            of(documents=0, drawn=drawn).chosen(file) == of(documents=200, drawn=drawn).chosen(file) == file
        )
    told = [of(documents=30, **more).settings(("documents",))["documents"] for more in ({}, {"drawn": False})]
    assert told[1] == 30 != told[0]
    assert of(documents=30, seed=1).settings(("documents",))["documents"] != told[0]


def test_a_files_fingerprint_is_its_contents(tmp_path):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(content)
    prints = [file_fingerprint(tmp_path / name / "data") for name in "abc"]
    assert prints[0] == prints[1] != prints[2] and str(tmp_path) not in "".join(prints)


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(Sizes)])
def test_sizes_that_leave_nothing_are_refused(name):
    with pytest.raises(ValueError, match=name):
        Sizes(**{name: -1})


def test_a_killed_sweep_goes_on_with_the_next_threshold(workspace, monkeypatch):
    thresholds, asked = (0.0, 0.5, 1.0), []
    whole = sweeps.sweep

    def dies_after_two(pair, thresholds, *arguments, **more):
        asked.append(tuple(thresholds))
        for number, point in enumerate(whole(pair, thresholds, *arguments, **more)):
            if number == 2 and len(asked) == 1:
                raise KeyboardInterrupt
            yield point

    monkeypatch.setattr(sweeps, "sweep", dies_after_two)
    monkeypatch.setattr(sweeps, "MAX_NEW_TOKENS", 9)
    with pytest.raises(KeyboardInterrupt):
        sweeps.swept(workspace, thresholds)
    base, points = sweeps.swept(workspace, thresholds)
    assert asked == [(0.0, 0.5, 1.0), (0.5, 1.0)], "the point at 0 was kept"
    assert [point["threshold"] for point in points] == list(thresholds)
    fresh = dataclasses.replace(workspace, folder=workspace.folder / "fresh")
    again = sweeps.swept(fresh, thresholds)
    untimed = ("threshold", "tokens", "passes", "share_by_order", "quality", "reasons")
    for row, other in zip([base, *points], [again[0], *again[1]], strict=True):
        assert {key: row[key] for key in untimed} == {key: other[key] for key in untimed}
    sweeps.swept(fresh, thresholds)
    assert len(asked) == 3, "what is there is not measured again"
    sweeps.swept(fresh, thresholds, mask_strength=0.0)
    assert len(asked) == 4, "other options are other points"


# -- measurements


def test_perplexities_of_documents_equal_those_of_the_whole(workspace):
    model, documents = workspace.pair.dynamo, workspace.documents
    sums = perplexities.document_sums(model, documents)
    whole = perplexity.measure_perplexity(model, documents, np.ones(300))
    found = perplexities.head_perplexities(sums)
    names = ["PPL_1", "PPL_2", "PPL_3", "PPL_1:2", "PPL_1:3"]
    expected = [*whole.ppl, *whole.joint_ppl[1:]]
    assert [found[name]["value"] for name in names] == pytest.approx(expected, rel=1e-5)
    same = perplexities.first_head_against(sums, sums)
    assert same == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_first_stage_of_figure_11_is_the_product(workspace):
    """The first stage of figure 11 is the product and the mask keeps seen pairs."""
    model, table = workspace.pair.dynamo, workspace.pair.table
    prompt = workspace.prompts[0]
    candidates = joints._candidates(model, prompt)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).head_logits[:2, 0, -1].double().numpy()
    top = [np.argsort(-row, kind="stable")[:50] for row in logits]
    f = [np.exp(row[ids] / 0.7) / np.exp(row[ids] / 0.7).sum() for row, ids in zip(logits, top, strict=True)]
    product = joints.stage_grid(candidates, table, joints.STAGES["product"])
    assert product == pytest.approx(np.outer(*f), abs=1e-6)
    ratios = np.array([[float(table.ratio((a, b))) for b in top[1]] for a in top[0]])
    masked = joints.stage_grid(candidates, table, joints.STAGES["mask"])
    expected = product * ratios
    total = expected.sum()
    assert masked == pytest.approx(expected / total if total else expected, abs=1e-6)
    half = joints.stage_grid(candidates, table, joints.STAGES["mask, strength 0.5"])
    assert ((half > 0) == (masked > 0)).all()
    cut = joints.stage_grid(candidates, table, joints.STAGES["mask + Otsu"])
    assert ((cut > 0) <= (masked > 0)).all()


# -- the command

TRAINING_FREE = ["table-2", "table-4", "figure-5", "figure-11", "figure-15", "calibration", "next-turns",
                 "other-corpus"]  # fmt: skip


def test_the_command_measures_reports_and_goes_on(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweeps, "MAX_NEW_TOKENS", 9)
    monkeypatch.setattr(sweeps, "THRESHOLDS", (0.0, 1.0))
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    arguments = [
        "reproduce", "--data", folder / "train.jsonl", folder / "held-out.jsonl", "--model", folder / "pair",
        "--prompts", folder / "prompts.json", "--other", folder / "held-out.jsonl", "--documents", 2,
        "--positions", 6, "--output", tmp_path / "out", "--report", tmp_path / "docs" / "report.md",
    ]  # fmt: skip
    code, result = run(capsys, *arguments, "--only", *TRAINING_FREE[:3])
    assert code == 0 and result["ran"] == TRAINING_FREE[:3]
    code, result = run(capsys, *arguments, "--only", *TRAINING_FREE)
    assert code == 0 and result["ran"] == TRAINING_FREE[3:]
    assert set(result["verdicts"]) == set(TRAINING_FREE) and "table-10" in result["without_result"]
    text = (tmp_path / "docs" / "report.md").read_text()
    stored = json.loads((tmp_path / "out" / "results" / "table-2.json").read_text())
    assert f"{stored['result']['dynamo']['PPL_1']['value']:.2f} (" in text
    linked = {line.split("](")[1].rstrip(")") for line in text.splitlines() if "](figures/" in line}
    assert linked and all((tmp_path / "docs" / link).is_file() for link in linked)
    # From the results alone, without data or a model; a result of an older version counts no more.
    write_json(result_path(tmp_path / "out", "table-2"), {**stored, "seconds": 7200})
    four = json.loads((tmp_path / "out" / "results" / "table-4.json").read_text())
    four["settings"]["version"] = 0
    write_json(result_path(tmp_path / "out", "table-4"), four)
    code, result = run(capsys, "reproduce", "--report-only", "--output", tmp_path / "out", "--report",
                       tmp_path / "docs" / "report.md")  # fmt: skip
    assert code == 0 and result["ran"] == [] and "table-4" in result["without_result"]
    assert "--documents 2 --seed 0`: 120 min." in (tmp_path / "docs" / "report.md").read_text()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--only", "table-99"], "table-99"),
        ([], "data: "),
        (["--data", "nowhere.jsonl", "nothing.jsonl"], "nowhere.jsonl"),
        (["--data", "."], "dialogues_train"),
        (["--data", "a", "b", "c"], "got 3"),
        (["--report-only", "--positions", "0"], "positions"),
    ],
)
def test_what_the_command_cannot_do_is_refused_by_name(arguments, named, capsys, tmp_path, monkeypatch):
    from dynamo.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    assert named in capsys.readouterr().err
