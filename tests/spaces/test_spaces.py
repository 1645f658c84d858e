from pathlib import Path

import pytest

from dynamo.spaces import read_config

SHIPPED = Path(__file__).resolve().parents[2] / "spaces_config.yaml"


def written(tmp_path, text: str) -> Path:
    path = tmp_path / "spaces_config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_names_smollm2_first_and_keeps_votes_beside_the_app():
    config = read_config(SHIPPED, {})
    assert (config.model, config.models) == ("", ("smollm2", "embedded"))
    assert config.votes == SHIPPED.parent / "votes"
    assert not config.zero_gpu


def test_a_public_space_has_no_voting_until_a_folder_is_named(tmp_path):
    assert read_config(SHIPPED, {"SPACE_ID": "someone/dynamo"}).votes is None
    text = SHIPPED.read_text(encoding="utf-8").replace('votes_on_space: ""', "votes_on_space: /data/votes")
    assert read_config(written(tmp_path, text), {"SPACE_ID": "someone/dynamo"}).votes == Path("/data/votes")


def test_the_environment_wins():
    config = read_config(SHIPPED, {"DYNAMO_MODEL": "mine", "DYNAMO_VOTES": "", "SPACES_ZERO_GPU": "true"})
    assert (config.model, config.votes, config.zero_gpu) == ("mine", None, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n", "expected keys and values, got list"),
        ("{", "not YAML"),
        ("models: embedded\n", "models: "),
        ("models: []\napp: {queue_size: 3, votes: v}\n", "models: "),
        ("models: [m]\napp: {queue_size: 0, votes: v}\n", "queue_size: "),
        ("models: [m]\napp: {queue_size: true, votes: v}\n", "queue_size: "),
        ("models: [m]\napp: {queue_size: 3}\n", "votes: "),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_config(written(tmp_path, text), {})


def test_models_are_chosen_on_a_space_only_where_the_file_says_so(tmp_path):
    """Models are chosen on ones own machine and on a space only where the file says so."""
    assert read_config(SHIPPED, {}).model_choice and not read_config(SHIPPED, {}).on_space
    on_space = read_config(SHIPPED, {"SPACE_ID": "someone/dynamo"})
    assert on_space.on_space and not on_space.model_choice
    text = SHIPPED.read_text(encoding="utf-8")
    told = written(tmp_path, text.replace("model_choice_on_space: false", "model_choice_on_space: true"))
    assert read_config(told, {"SPACE_ID": "someone/dynamo"}).model_choice
    with pytest.raises(ValueError, match=r"app\.model_choice: expected true or false, got 'yes please'"):
        read_config(written(tmp_path, text.replace("model_choice: true", "model_choice: yes please")), {})


def test_the_folder_of_the_dialogues_is_beside_the_file_and_never_on_a_space():
    assert read_config(SHIPPED, {}).data == SHIPPED.parent / "data"
    assert read_config(SHIPPED, {"DYNAMO_DATA": "/mine"}).data == Path("/mine")
    assert read_config(SHIPPED, {"DYNAMO_DATA": ""}).data is None
    assert read_config(SHIPPED, {"SPACE_ID": "someone/dynamo", "DYNAMO_DATA": "/data"}).data is None
