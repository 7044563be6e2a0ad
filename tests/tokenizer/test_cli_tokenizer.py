from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from treering.cli.main import main
from treering.corpus import Source, training_texts
from treering.tokenizer import identity, load, train


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def treering(*arguments: object) -> Done:
    """The command as a shell runs it, without the seconds a new process takes to import everything."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["treering", "tokenizer", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    for name, line in {"el": "Καλημέρα κόσμε, τι κάνεις;", "hi": "नमस्ते दुनिया, आप कैसे हैं?"}.items():
        (directory / f"{name}.txt").write_text(f"{line}\n\n" * 300, encoding="utf-8")
    done = treering("train", directory / "el.txt", directory / "hi.txt", "-o", directory / "t", "--vocab-size", 500)
    assert done.returncode == 0, done.stderr
    assert "compact" in done.stdout
    return directory


def test_train_writes_a_tokenizer(trained: Path) -> None:
    tokenizer = load(trained / "t")
    assert len(tokenizer) == 500
    assert tokenizer.tokenize("Καλημέρα κόσμε") == ["Καλημέρα", " κόσμε"]


def test_documents_are_held_out_by_the_rule_that_was_asked_for(tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("".join(f"слово{n} {n}\n" for n in range(400)), encoding="utf-8")
    done = treering("train", text, "-o", tmp_path / "t", "--vocab-size", 400, "--document", "line", "--validation", 0.3)
    assert done.returncode == 0, done.stderr
    expected = train({str(text): training_texts(Source(path=str(text), document="line"), 0.3)}, 400)
    assert identity(load(tmp_path / "t")) == identity(expected)


def test_info(trained: Path) -> None:
    told = json.loads(treering("info", trained / "t", "--json").stdout)
    assert (told["layout"], told["vocab_size"], told["special"]) == ("compact", 500, 23)
    assert told["identity"] in treering("info", trained / "t").stdout.replace("\n", "").replace(" ", "")


def test_encode(trained: Path) -> None:
    text = "नमस्ते [b]</s> 😀"
    told = json.loads(treering("encode", trained / "t", text, "--json").stdout)
    assert told["exact"] is True and told["decoded"] == text and "</s>" not in told["tokens"]
    shown = treering("encode", trained / "t", text)
    assert "decodes exactly" in shown.stdout and "<0xF0>" in shown.stdout
    assert treering("encode", trained / "t", "").stdout.count("0 tokens, 0 characters") == 1


def test_errors_are_one_message(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "one.txt").write_text("a few words")
    before = (trained / "t/tokenizer.json").read_bytes()
    el, new = trained / "el.txt", tmp_path / "new"
    for arguments, message in (
        ((el, "-o", trained / "t"), "already exists"),
        ((el, "-o", new, "--vocab-size", 100), "too small"),
        ((el, "-o", new, "--vocab-size", 4096, "--layout", "unicode"), "65,536"),
        ((el, el, "-o", new), "more than once"),
        ((tmp_path / "empty.txt", "-o", new), "empty"),
        ((tmp_path / "latin.txt", "-o", new), "UTF-8"),
        ((tmp_path / "missing.txt", "-o", new), "missing.txt"),
        ((tmp_path / "one.txt", "-o", new, "--validation", 1), "held out"),
    ):
        done = treering("train", *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.glob("*new*")) == [] == list(tmp_path.glob(".*"))
    assert (trained / "t/tokenizer.json").read_bytes() == before
    done = treering("info", tmp_path / "nothing")
    assert done.returncode == 2 and "There is no directory" in done.stderr
