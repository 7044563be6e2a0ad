from __future__ import annotations

import errno
import os

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from treering import backbone
from treering.errors import TreeringError
from treering.growth.caching import choose_precision
from treering.growth.prefix import HiddenStates, PrefixCache, pack_row, row_bytes, unpack_row

TOLERANCE = {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 127}


@pytest.fixture
def blocks():
    return Dataset.from_dict({"input_ids": [[(7 * i + j) % 700 for j in range(16)] for i in range(5)]})


@pytest.fixture
def model(expert):
    return expert(0, 3)


@pytest.fixture
def cache(tmp_path, blocks):
    return lambda precision="float32", identity="these": PrefixCache(tmp_path / "cache", blocks, identity, precision)


@torch.no_grad()
def reference(model, blocks, below):
    return model(torch.tensor(blocks["input_ids"]), output_hidden_states=True).hidden_states[below]


@given(
    precision=st.sampled_from(list(TOLERANCE)),
    positions=st.integers(1, 5),
    width=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
)
def test_a_row_comes_back_to_its_precision(precision, positions, width, scale):
    hidden = torch.randn(positions, width) * scale
    content = pack_row(hidden, precision)
    assert len(content) == row_bytes(precision, positions, width)
    largest = hidden.abs().amax(-1, keepdim=True)
    assert ((unpack_row(content, precision, positions) - hidden).abs() <= TOLERANCE[precision] * largest + 1e-12).all()


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_cache_holds_what_the_model_computes(cache, model, blocks, precision):
    states, expected = cache(precision).states(model, 2), reference(model, blocks, 2)
    for row in range(len(blocks)):
        bound = TOLERANCE[precision] * expected[row].abs().amax() + 1e-5
        assert (states[row] - expected[row]).abs().max() <= bound


def test_rolled_forward_is_as_from_the_tokens(cache, model, blocks, monkeypatch):
    kept = cache()
    kept.states(model, 1)
    with monkeypatch.context() as patch:
        patch.setattr(backbone.embedding(model), "forward", None)  # the tokens are not looked at again
        rolled = kept.states(model, 2)
    torch.testing.assert_close(torch.stack([rolled[r] for r in range(5)]), reference(model, blocks, 2))


def test_what_it_follows_from_names_it(cache, model, tmp_path):
    path = cache().path(model, 2)
    assert cache().path(model, 2) == path
    model.save_pretrained(tmp_path / "saved")  # which changes the configuration
    assert cache().path(model, 2) == path
    others = {path, cache().path(model, 1), cache("bfloat16").path(model, 2), cache(identity="other").path(model, 2)}
    with torch.no_grad():
        next(backbone.blocks(model)[2].parameters()).add_(1)
    assert cache().path(model, 2) == path  # above the boundary nothing matters
    with torch.no_grad():
        next(backbone.blocks(model)[1].parameters()).add_(1)
    others.add(cache().path(model, 2))
    with torch.no_grad():
        backbone.embedding(model).weight.add_(1)
    others.add(cache().path(model, 2))
    model.config.layer_norm_eps *= 2
    others.add(cache().path(model, 2))
    assert len(others) == 7


def test_a_second_run_reads_the_file_that_is_there(cache, model, monkeypatch):
    cache().states(model, 1)
    monkeypatch.setattr(PrefixCache, "_forward", None)
    cache().states(model, 1)


@pytest.mark.parametrize("fault", ["flip", "cut"])
def test_damage_is_told_and_the_file_put_away(cache, model, fault):
    kept = cache()
    path = kept.path(model, 1)
    states = kept.states(model, 1)
    states[3]
    if fault == "flip":
        with path.open("r+b") as file:
            file.seek(3 * states.row_bytes + 5)
            file.write(bytes([file.read(1)[0] ^ 1]) if file.seek(3 * states.row_bytes + 5) else b"")
    else:
        os.truncate(path, 3 * states.row_bytes)
    with pytest.raises(TreeringError, match=r"damaged or was cut short \(block 3\).*removed.*same command again"):
        states[3]
    assert not path.exists()
    assert kept.states(model, 1)[3] is not None


def test_interrupted_it_goes_on_where_it_stopped(cache, model, blocks, monkeypatch):
    monkeypatch.setattr("treering.growth.prefix.TOKENS_AT_ONCE", 16)
    kept, done, forward = cache(), [], PrefixCache._forward

    def counted(self, model, rows, source, stop=None):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.extend(rows)
        return forward(self, model, rows, source)

    monkeypatch.setattr(PrefixCache, "_forward", lambda *args: counted(*args, stop=3))
    with pytest.raises(KeyboardInterrupt):
        kept.states(model, 2)
    assert not kept.path(model, 2).exists()
    monkeypatch.setattr(PrefixCache, "_forward", counted)
    states = kept.states(model, 2)
    assert done == [0, 1, 2, 3, 4]
    torch.testing.assert_close(torch.stack([states[r] for r in range(5)]), reference(model, blocks, 2))
    assert len(list(kept.directory.iterdir())) == 1
    assert len(backbone.blocks(model)) == 3 and backbone.embedding(model).weight.ndim == 2  # put back


def test_a_full_disk_is_told_before_the_work(cache, model, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HiddenStates, "reserve", full)
    with pytest.raises(TreeringError, match="No space left on the disk of"):
        cache().states(model, 1)
    assert not list(cache().directory.iterdir())


def test_only_what_is_wanted_is_kept(cache, model):
    kept = cache()
    for below in (1, 2, 3):
        kept.states(model, below)
    with torch.no_grad():
        next(backbone.blocks(model)[1].parameters()).add_(1)
    kept.keep_only(model, {1, 3})
    assert list(kept.directory.iterdir()) == [kept.path(model, 1)]  # that of 3 was of other weights


def test_auto_compares_and_says_why(tmp_path, monkeypatch):
    for asked in ("float32", "bfloat16", "int8"):
        assert choose_precision(asked, 1, 2, 3, tmp_path) == (asked, f"cached in {asked}, as asked")
    assert choose_precision("recompute", 9, 2, 3, tmp_path)[0] is None
    precision, why = choose_precision("auto", 1e9, 2e9, 3, tmp_path)
    assert precision is None and "1e+09 FLOPs, making a cache of it 2e+09" in why
    precision, why = choose_precision("auto", 4e9, 1e9, 2**20, tmp_path / "not" / "there")
    assert precision == "bfloat16" and "4 MiB" in why and "25%" in why
    precision, why = choose_precision("auto", 4e9, 1e9, 2**60, tmp_path)
    assert precision is None and "are free" in why
