from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from treering import cli
from treering.corpus import Corpus, CorpusRecipe, load_manifest
from treering.recipe import load_recipe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("data", …)``: exit code, what was printed, and what was said on stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["treering", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            raise SystemExit(0)
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def tokenizer_directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def three_languages(tmp_path: Path) -> list[Path]:
    """Text files as people have them: with blank lines, with long lines, with Windows line ends."""
    words = {"fi": "järvi metsä yö käki suo", "ka": "ტყე მთა ზღვა ცა", "ja": "山 川 海 空 森の中"}
    ends = {"fi": "\n\n", "ka": "\n", "ja": "\r\n"}
    paths = []
    for language, vocabulary in words.items():
        generator = random.Random(language)
        sentences = (" ".join(generator.choices(vocabulary.split(), k=30)) for _ in range(900))
        paths.append(tmp_path / f"{language}.txt")
        paths[-1].write_bytes(ends[language].join(sentences).encode())
    return paths


def test_three_text_files_to_a_corpus(
    run: Run, three_languages: list[Path], tokenizer_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    code, printed, said = run("data", "prepare", *three_languages, "-t", tokenizer_directory, "-o", out)
    assert code == 0 and said.startswith("warning: few documents are held out (ka 1, ja 1), and an interval")
    assert all(name in printed for name in ("fi", "ka", "ja"))
    corpus = Corpus.load(out)
    assert corpus.manifest.block_size == 512
    assert {row["source"] for row in corpus.validation} == {"fi", "ka", "ja"}
    code, again, _ = run("data", "info", out)
    assert (code, again) == (0, printed)
    code, printed, _ = run("data", "info", out, "--json")
    assert json.loads(printed) == json.loads((out / "manifest.json").read_text())


def test_weights_parts_and_names(run: Run, tokenizer_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    code, _, _ = run(
        *("data", "prepare", "embedded:ru", "english=embedded:en", "-t", tokenizer_directory, "-o", out),
        *("--part", "english=1/2", "--weight", "ru=0.75", "--weight", "english=0.25"),
        *("--block-size", 64, "--validation", 0.1, "--mix", "repeat", "--seed", 5, "--limit", 150),
    )
    manifest = Corpus.load(out).manifest
    assert code == 0
    assert [(s.name, s.source.part) for s in manifest.sources] == [("ru", None), ("english", "1/2")]
    assert [s.share for s in manifest.sources] == pytest.approx([0.75, 0.25], abs=0.01)
    assert (manifest.block_size, manifest.validation_share, manifest.mix, manifest.seed) == (
        64,
        0.1,
        "repeat",
        5,
    )
    assert manifest.sources[0].documents == 150


def test_calibration(run: Run, tokenizer_directory: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "corpus", tmp_path / "corpus.yaml"
    recipe.write_text(f"sources: ['embedded:ru']\ntokenizer: {tokenizer_directory}\noutput: {out}\ncalibration: 0.9\n")
    code, printed, _ = run("data", "prepare", "--recipe", recipe, "--calibration", 0.02)
    assert code == 0
    manifest = Corpus.load(out).manifest
    assert manifest.calibration_share == 0.02
    assert f"\ncalibration: {manifest.calibration.documents} documents = " in printed
    assert f" {manifest.validation.documents} + {manifest.calibration.documents} " in printed
    assert run("data", "info", out)[1] == printed


def test_near_duplicates_are_told(run: Run, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus, kept, few = tmp_path / "corpus", tmp_path / "kept", ("--calibration", 0.05, "--limit", 400)
    code, printed, _ = run("data", "prepare", "embedded:ru", "-t", tokenizer_directory, "-o", corpus, *few)
    assert code == 0
    assert run("data", "info", corpus)[1] == printed
    manifest = load_manifest(corpus)
    overlap, source = manifest.overlap, manifest.sources[0]
    assert overlap is not None
    said = " ".join(printed.split())
    before, after = (
        f"{n / overlap.paragraph_bytes:.1%} of the validation bytes" for n in (overlap.before, overlap.after)
    )
    assert (
        f"near-duplicates: {before} stood in training documents too; {source.cut_paragraphs:,} paragraphs were" in said
    )
    assert f"cut and {source.repeats_of_held_out} documents left out" in said
    assert f"({source.cut_bytes / (source.cut_bytes + source.train_bytes):.1%} of the training bytes)" in said
    assert f"; {after}, phrases of less than 16 bytes, still do" in said
    assert f"near-duplicates in calibration: {source.calibration_cut_paragraphs} paragraphs were cut" in said
    code, printed, _ = run(
        *("data", "prepare", "embedded:ru", "-t", tokenizer_directory, "-o", kept, *few, "--duplicate-bytes", 0)
    )
    assert code == 0
    assert "were kept (--duplicate-bytes 0)" in " ".join(printed.split())
    assert load_manifest(kept).train.tokens > manifest.train.tokens
    path = corpus / "manifest.json"
    values = json.loads(path.read_text())
    del values["overlap"]
    path.write_text(json.dumps(values))
    (corpus / "manifest.sha256").unlink()
    assert "near-duplicates: not looked for" in run("data", "info", corpus)[1]


def test_a_recipe(run: Run, three_languages: list[Path], tokenizer_directory: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "corpus.yaml"
    recipe.write_text(
        f"sources:\n- {three_languages[0]}\n"
        f"- path: {three_languages[1]}\n  name: georgian\n  document: line\n"
        f"tokenizer: {tokenizer_directory}\noutput: {tmp_path / 'c'}\nblock_size: 128\n"
    )
    assert run("data", "prepare", "--recipe", recipe, "--block-size", 64)[0] == 0
    manifest = Corpus.load(tmp_path / "c").manifest
    assert [s.name for s in manifest.sources] == ["fi", "georgian"]
    assert manifest.block_size == 64
    recipe.write_text(recipe.read_text().replace("document: line", "documnet: line"))
    code, _, said = run("data", "prepare", "--recipe", recipe, "-o", tmp_path / "d")
    assert code == 2
    assert f"{recipe}:5: sources.1.documnet" in said
    assert run("data", "prepare", "--recipe", recipe, "x.txt")[0] == 2


def test_the_recipe_in_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")
    recipe = tmp_path / "corpus.yaml"
    recipe.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    read = load_recipe(recipe, CorpusRecipe)
    assert [source.name for source in read.sources] == ["kalevala", "fineweb-edu", "archive"]
    assert sum(source.weight or 0 for source in read.sources) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope.txt"], "There is no file or directory nope.txt"),
        (["empty.txt"], "empty.txt is empty"),
        (["latin.txt"], "line 2, byte 6: 0xE9 is not UTF-8"),
        (["good.txt", "--weight", "bad=1"], "the sources are named good"),
        (["good.txt", "--weight", "good=many"], "weight"),
        (["good.txt", "--part", "good=3/2"], 'a part is written "1/2"'),
        (["good.txt", "x=good.txt", "good.txt"], "Two sources are named good"),
        (["good.txt", "--max-document-mb", "0.00001"], "is longer than 10 bytes"),
        (["good.txt", "--validation", "7"], "from 0 to less than 1"),
        (["good.txt", "--validation", "0.5", "--calibration", "0.6"], "together they must be less than 1"),
        (["good.txt", "-o", "taken"], "taken already exists"),
        (["embedded:xx"], "there are ru, zh, en"),
        ([], "SOURCE is missing"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    run: Run,
    tokenizer_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("слово\n" * 3_000)
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("abc\ncaf\xe9\n".replace("caf", "ca").encode("latin-1"))
    Path("taken").mkdir()
    Path("taken/x").touch()
    before = sorted(p.name for p in tmp_path.iterdir())
    defaults = ["-t", tokenizer_directory] + ([] if "-o" in arguments else ["-o", "out"])
    code, printed, said = run("data", "prepare", *arguments, *defaults)
    assert code == 2
    assert printed == ""
    assert expected in said
    assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_names_in_a_strangers_manifest_do_nothing_to_the_terminal(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.directory, tmp_path / "c")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest["sources"][0]["name"] = "\x1b[31m[bold]\u202e"
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "c" / "manifest.sha256").unlink()
    code, printed, _ = run("data", "info", tmp_path / "c")
    assert code == 0
    assert r"\x1b[31m[bold]\u202e" in printed
