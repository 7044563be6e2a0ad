"""An output below a file: every command that writes says so in one message, and leaves the file alone."""

from __future__ import annotations

import signal

import pytest

from treering import tokenizer as tokenizers
from treering.cli import main
from treering.composition import compose_directories
from treering.corpus import Source, prepare

TRAINING = "training: {tokens: 1024, batch_tokens: 256, evaluations: 1}\n"


@pytest.fixture(scope="module")
def place(tokenizer, substrate, expert, tmp_path_factory):
    """A directory with one of everything."""
    place = tmp_path_factory.mktemp("place")
    (place / "substrate").mkdir()
    substrate.save(place / "substrate", tokenizer)
    for seed, name in enumerate(("a", "b")):
        expert(seed, 1).save_pretrained(place / name)
        tokenizers.save(tokenizer, place / name)
    compose_directories({name: place / name for name in ("a", "b")}, place / "joined")
    source = Source(path="embedded:en", limit=200)
    prepare([source], tokenizer, place / "data", block_size=64, validation=0.1, calibration=0.1)
    (place / "text.txt").write_text("some text\n" * 500)
    (place / "expert.yaml").write_text("backbone: {preset: tiny}\n" + TRAINING)
    (place / "grow.yaml").write_text("backbone: {preset: tiny}\nplan: {way: monolithic, depth: 1}\n" + TRAINING)
    (place / "study.yaml").write_text("backbone: {preset: tiny}\nplan: {way: stacked, depth: 2}\n" + TRAINING)
    return place


@pytest.mark.parametrize(
    "command",
    [
        "tokenizer train text.txt --vocab-size 300 --validation 0 -o OUT",
        "substrate build substrate --d-model 64 --kind random -o OUT",
        "data prepare text.txt --tokenizer substrate -o OUT",
        "train expert.yaml --substrate substrate --data data -o OUT",
        "grow grow.yaml --substrate substrate --data data -o OUT",
        "study growth study.yaml --tokenizer substrate --data data -o OUT",
        "compose a b -o OUT",
        "demo -o OUT",
        "explain joined text -o OUT",
    ],
)
def test_an_output_below_a_file_is_told(place, command, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    file = place / "text.txt"
    before = file.read_bytes(), sorted(path.name for path in place.iterdir())
    monkeypatch.setattr("sys.argv", ["treering", *command.replace("OUT", "text.txt/out/deep").split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert "text.txt" in said and "error:" in said and "Traceback" not in said
    assert before == (file.read_bytes(), sorted(path.name for path in place.iterdir()))
