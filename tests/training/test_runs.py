"""A training run as a value: made from a recipe, written as a command, refused where it makes no sense."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.commands import finetune, train
from dynamo.common.options import from_arguments
from dynamo.training.finetune import finetune as finetune_model
from dynamo.training.options import FinetuningRun, TrainingOptions, TrainingRun, training_run
from dynamo.training.recipes import RECIPES
from dynamo.training.train import train as train_heads

words = st.text(st.characters(codec="ascii", exclude_characters="\x00"), min_size=1).filter(
    lambda word: not word.startswith("-")
)
paths = words.map(Path)
options = {
    "steps": st.integers(1, 10**9),
    "batch_size": st.integers(1, 512),
    "base_lr": st.floats(0, 1),
    "final_lr": st.floats(0, 1),
    "heads_only": st.booleans(),
    "activation_checkpointing": st.booleans(),
    "mixed_precision": st.sampled_from(["no", "bf16"]),
}


def parsed(command, arguments):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(arguments)


@given(
    st.fixed_dictionaries(
        {"data": st.lists(words, min_size=1).map(tuple), "output": paths},
        optional={
            "model": words,
            "recipe": st.sampled_from(list(RECIPES)),
            "heads": st.integers(1, 5),
            "head_init": st.sampled_from(["random", "copy"]),
            "own_output_embedding": st.booleans(),
            "correlator_rank": st.integers(0, 512),
            "position_share": st.floats(0.01, 1),
            "states": paths,
            "block_size": st.integers(1, 4096),
            "tokens": paths,
            **options,
        },
    )
)
def test_the_command_of_a_training_makes_the_same_run(values):
    run = training_run(**values)
    verb, *flags = run.arguments()
    assert verb == "train" and training_run(**vars(parsed(train, flags))) == run


@given(
    st.fixed_dictionaries(
        {"model": words, "data": words, "output": paths},
        optional={
            "epochs": st.floats(0.1, 100),
            "min_rating": st.floats(0, 5),
            "steps": st.integers(1, 10**9),
            "max_length": st.integers(1, 4096),
        },
    ),
    st.fixed_dictionaries({}, optional={name: each for name, each in options.items() if name != "steps"}),
)
def test_the_command_of_a_finetuning_makes_the_same_run(own, inner):
    run = from_arguments(FinetuningRun, argparse.Namespace(**own, **inner))
    verb, *flags = run.arguments()
    assert verb == "finetune" and from_arguments(FinetuningRun, parsed(finetune, flags)) == run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fills_in_what_is_not_given(name):
    recipe = RECIPES[name]
    run = training_run(recipe=name, data=("texts.jsonl",), output=Path("run"), batch_size=2, seed=3)
    assert (run.model, run.block_size) == (recipe.base, recipe.block_size)
    expected = {**vars(TrainingOptions()), **recipe.options, "batch_size": 2, "seed": 3}
    assert vars(run.options) == expected
    assert training_run(recipe=name, new="1x8x1", data=("d",), output=Path("run")).model is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("data", 5), ("output", "run"), ("heads", "3"), ("head_init", "zero"), ("recipe", "large")],
)
def test_a_field_of_another_type_is_named(name, value):
    assert name in {each.name for each in fields(TrainingRun)}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        training_run(**{"data": ("texts.jsonl",), "output": Path("run"), name: value})


@pytest.mark.parametrize("name", ["data", "validation", "ratings"])
def test_a_slip_in_a_path_is_named_before_anything_is_read(tmp_path, monkeypatch, name):
    """Not when the data is tokenised, or the model loaded: there is no such model here."""
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("no row at all")
    values = {"data": ("texts.jsonl",), "output": tmp_path / "run", "model": "nowhere"}
    slip = {name: ("text.jsonl",) if name == "data" else "text.jsonl"}
    with pytest.raises(ValueError, match=f"^{name}: .*text.jsonl"):
        finetune_model(FinetuningRun(**{**values, "min_rating": 1.0, **slip}))
    if name != "ratings":
        with pytest.raises(ValueError, match=f"^{name}: .*did you mean texts.jsonl"):
            train_heads(training_run(**{**values, **slip}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("slip", "remedy"), [("step", "steps"), ("zebra", "batch_size")])
def test_a_misspelt_option_is_not_passed_over(slip, remedy):
    """It would train for a day in the place of a minute."""
    with pytest.raises(ValueError, match=f"^{slip}: no option of TrainingRun.*{remedy}"):
        training_run(data=("texts.jsonl",), output=Path("run"), model="m", **{slip: 3})


@pytest.mark.parametrize(("start", "name"), [({}, "model"), ({"model": "m", "new": "1x8x1"}, "new")])
def test_a_run_starts_from_one_model(tmp_path, start, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        train_heads(TrainingRun(("texts.jsonl",), tmp_path, **start))
