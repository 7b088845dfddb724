"""The examples, at small size."""

from __future__ import annotations

import pytest
import torch

from engine.examples import own_network, sinusoid, text
from tests.tiny import make_images


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


def test_sine_waves_are_learned():
    learner, last = sinusoid.train(300)
    found = sinusoid.errors(learner, steps=5, tasks=100)
    assert len(found) == 6 and found[5] < 0.75 * found[0]
    assert last < 4


def test_an_own_network_trains_on_own_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMLPP_CACHE", str(tmp_path / "cache"))
    folder = make_images(tmp_path / "tiny")
    accuracy = own_network.main(str(folder), 50, width=4)
    out = capsys.readouterr().out
    assert "iteration 50: loss" in out and "test: " in out and 25 < accuracy <= 100


def test_a_transformer_learns_to_judge_new_languages(capsys):
    assert 40 < text.main(50) <= 100
    assert "iteration 50: loss" in capsys.readouterr().out
