"""Commands run as a user runs them, in this process."""

from __future__ import annotations

import json

import pytest
from conftest import DIALOGUES
from tables import save_pair

from dynamo.__main__ import main


def run(capsys, *arguments):
    """Exit code, and the JSON object of the last line of stdout, or what stderr says instead."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else err


LONGEST = ["--max-new-tokens", 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("measuring")
    save_pair(folder / "pair", tokenizer)
    (folder / "data.jsonl").write_text("\n".join(json.dumps({"messages": turns}) for turns in DIALOGUES))
    chats = [[{"role": "user", "content": text}] for text in ("Hello there", "A table, please")]
    (folder / "prompts.json").write_text(json.dumps(chats))
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
