"""Lent model time: everything is pickled, refusals keep their sentence, closing reaches the worker."""

import pickle
from types import SimpleNamespace

import pytest
from conftest import tiny_dynamo

from dynamo import Engine, SamplingOptions, zerogpu
from dynamo.zerogpu import Lender

PROMPT = [5, 6, 7, 8]
OPTIONS = SamplingOptions(threshold=0.3, mask_strength=0.0)


@pytest.fixture
def lender(monkeypatch):
    """With a stand-in of the library that pickles what its own sends between processes."""
    monkeypatch.setattr(zerogpu, "_tasks", {})
    asked = []

    def gpu(duration):
        asked.append(duration)

        def decorate(function):
            assert pickle.loads(pickle.dumps(function)) is function, "methods and closures carry models along"

            def lent(*arguments):
                values = function(*pickle.loads(pickle.dumps(arguments)))
                try:
                    for value in values:
                        yield pickle.loads(pickle.dumps(value))
                finally:
                    values.close()

            return lent

        return decorate

    lender = Lender(25, SimpleNamespace(GPU=gpu))
    assert asked == [25]
    return lender


def test_a_lent_engine_says_what_the_engine_says(lender):
    model = tiny_dynamo()
    made = []

    def make():
        made.append(True)
        return Engine(model)

    lent = lender.engine("dynamo", make)
    assert made == []
    runs = [
        [step.tokens for step in each.stream(PROMPT, OPTIONS, max_new_tokens=12, seed=3)]
        for each in (Engine(model), lent, lent)
    ]
    assert runs[0] == runs[1] == runs[2] and made == [True]


def test_a_refusal_keeps_its_sentence(lender):
    lent = lender.engine("dynamo", lambda: Engine(tiny_dynamo()))
    with pytest.raises(ValueError, match="max_new_tokens: expected 1 or more, got 0"):
        list(lent.stream(PROMPT, OPTIONS, max_new_tokens=0))


def test_other_errors_are_the_librarys_to_show(lender):
    def broken():
        raise RuntimeError("a bug")
        yield

    with pytest.raises(RuntimeError):
        list(lender.generator("broken", broken)())


def test_closing_a_run_ends_it_in_the_worker(lender):
    ended = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            ended.append(True)

    run = lender.generator("endless", endless)()
    assert next(run) == 1
    run.close()
    assert ended == [True]


def test_functions_are_lent_too_and_names_are_taken_once(lender):
    assert lender.function("double", lambda x: 2 * x)(21) == 42
    with pytest.raises(ValueError, match="'double' is offered already"):
        lender.function("double", abs)
