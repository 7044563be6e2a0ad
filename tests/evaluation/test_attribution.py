from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import pytest
import torch
from typer.testing import CliRunner

from treering.cli.main import app
from treering.composition import compose, compose_directories
from treering.errors import TreeringError
from treering.evaluation import document_losses, explain
from treering.evaluation.attribution import ITSELF
from treering.report.explanation import explanation, shade
from treering.tokenizer import encode, save, train

HARD = "Открыть 😀👩‍👩‍👧 файл 打开文件\r\n\n\topen <b>\"a\" & 'file'</b> </s> é e\u0301 𠀀\x00\x1b[31m\u202e 1"
TOGETHER = "evidence:switch=0.1,together=0.1"
RULES = ["mean", "weighted", "probability", "evidence", "evidence:switch=0.1", TOGETHER, "top_k:k=1", "gate", "adapter"]


@pytest.fixture(scope="module")
def experts(expert):
    return {"ru": expert(1), "zh": expert(2, 1), "en": expert(3, 2, "llama")}


@pytest.fixture(scope="module")
def composed(experts):
    return compose(experts, "evidence", {"zh": {"weight": 2.0}})


@pytest.fixture(scope="module")
def unicode_tokenizer(pages):
    return train(pages, 1_500)


@pytest.fixture(scope="module")
def directory(experts, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("experts")
    for name in ("ru", "zh"):
        experts[name].save_pretrained(place / name)
        save(tokenizer, place / name)
    compose_directories({name: place / name for name in ("ru", "zh")}, place / "joined", "evidence:switch=0.1")
    return place


@pytest.mark.parametrize("switch", [0.0, 0.2])
def test_log_probabilities_and_evidence_are_those_of_plain_forwards(experts, composed, tokenizer, switch):
    text = "Откройте файл 打开文件 file"
    found = explain(composed.use(f"evidence:switch={switch}"), tokenizer, text)
    ids = [tokenizer.eos_token_id, *encode(tokenizer, [text])[0]]
    with torch.no_grad():
        logits = [expert(input_ids=torch.tensor([ids])).logits[0].double() for expert in experts.values()]
    prior = weights = [0.25, 0.5, 0.25]
    for position, token in enumerate(ids[1:]):
        given = [math.exp(log.log_softmax(-1)[position, token]) for log in logits]
        together = sum(w * p for w, p in zip(weights, given, strict=True))
        after = [w * p / together for w, p in zip(weights, given, strict=True)]
        assert found.weights[:, position].exp().tolist() == pytest.approx(weights, rel=1e-3, abs=1e-9)
        assert found.likelihood[:, position].exp().tolist() == pytest.approx(given, rel=1e-3)
        assert found.joined[position].exp().item() == pytest.approx(together, rel=1e-3)
        assert found.credit[:, position].tolist() == pytest.approx(after, rel=1e-3, abs=1e-9)
        weights = [(1 - switch) * w + switch * p for w, p in zip(after, prior, strict=True)]


@pytest.mark.parametrize("rule", RULES)
def test_totals_are_those_of_document_losses_by_every_rule_and_beyond_the_context(experts, composed, tokenizer, rule):
    text = "Откройте файл. 打开文件。 Open the file. " * 12
    found = explain(composed.use(rule), tokenizer, text)
    assert len(found.joined) > 3 * composed.config.max_position_embeddings
    assert found.rule == rule
    assert found.bits_per_byte == pytest.approx(document_losses(composed, tokenizer, [text]).score().bits_per_byte)
    shares = found.shares()
    for share in shares:
        alone = document_losses(experts[share["expert"]], tokenizer, [text]).score().bits_per_byte
        assert share["bits_per_byte"] == pytest.approx(alone, rel=1e-5)
    assert sum(share["tokens"] for share in shares) == pytest.approx(1)
    assert sum(share["bytes"] for share in shares) == pytest.approx(1)


def test_what_the_text_repeats_of_itself_has_a_name_and_its_credit(composed, tokenizer):
    text = "Откройте файл. Откройте файл. Откройте файл."
    found = explain(composed.use("evidence:cache=0.3"), tokenizer, text)
    assert found.experts == (*composed.experts, ITSELF)
    torch.testing.assert_close(found.weights.exp().sum(0), torch.ones(len(found.spans), dtype=torch.float64))
    torch.testing.assert_close((found.weights + found.likelihood).logsumexp(0), found.joined, rtol=1e-4, atol=1e-4)
    third = len(found.spans) // 3
    assert found.credit[-1, -third:].min() > 0.9 > found.credit[-1, :third].mean()
    assert found.bits_per_byte == pytest.approx(document_losses(composed, tokenizer, [text]).score().bits_per_byte)


@pytest.mark.parametrize("text", [HARD, "\n", " ", "😀", "a", "打开"])
@pytest.mark.parametrize("kind", ["tokenizer", "unicode_tokenizer"])
def test_pieces_end_to_end_are_exactly_the_text(expert, composed, request, kind, text):
    tokenizer = request.getfixturevalue(kind)
    if kind == "unicode_tokenizer":
        text = text.replace("打开文件", "𠮷野家")
        from treering import substrate as substrates
        from treering.backbone import Preset, dock, gpt_neox

        body = substrates.build(tokenizer, 64, kind="random")
        docked = dock(gpt_neox(Preset(1, 64, 2, len(tokenizer), context=96)), body, tokenizer)
        composed = compose({"a": docked, "b": docked}, "evidence")
    found = explain(composed, tokenizer, text)
    assert len(found.spans) == len(encode(tokenizer, [text])[0])
    pieces = found.pieces()
    assert "".join(text[start:end] for start, end in pieces.spans) == text
    assert all(start < end for start, end in pieces.spans)
    assert pieces.joined.sum().item() == pytest.approx(found.joined.sum().item())
    torch.testing.assert_close(pieces.likelihood.sum(-1), found.likelihood.sum(-1))


def test_a_character_of_many_tokens_is_one_piece_weighed_before_its_first(composed, tokenizer):
    found = explain(composed.use("evidence"), tokenizer, "a😀")
    assert len(found.spans) == 5
    pieces = found.pieces()
    assert pieces.spans == ((0, 1), (1, 2))
    torch.testing.assert_close(pieces.weights[:, 1], found.weights[:, 1])
    torch.testing.assert_close(pieces.likelihood[:, 1], found.likelihood[:, 1:].sum(-1))
    torch.testing.assert_close(pieces.credit[:, 1], found.credit[:, -1], rtol=1e-4, atol=1e-5)  # Bayes, bit by bit


def test_what_a_tokenizer_drops_goes_with_the_piece_before(composed, tokenizer):
    found = explain(composed, tokenizer, "abc")
    spans = ((0, 0), (1, 2), (4, 5))
    three = {name: getattr(found, name)[..., :1].expand(3, 3) for name in ("weights", "likelihood")}
    stripped = type(found)(" a  b ", found.experts, "mean", spans, **three, joined=found.joined[:1].expand(3))
    assert stripped.pieces().spans == ((0, 4), (4, 6))


def test_an_empty_text_and_a_lone_expert_are_refused(expert, composed, tokenizer):
    with pytest.raises(TreeringError, match="empty"):
        explain(composed, tokenizer, "")
    with pytest.raises(TreeringError, match="treering compose"):
        explain(expert(1), tokenizer, "text")


class Page(HTMLParser):
    """The text inside the pieces, and what else matters of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.shown, self.tips, self.addresses, self.inside = "", [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "data-tip" in found:
            self.inside = True
            self.tips.append(found["data-tip"])
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "b"

    def handle_data(self, data):
        self.shown += data if self.inside else ""


def test_the_page_holds_the_text_escaped_and_nothing_from_elsewhere(composed, tokenizer):
    found = explain(composed.use("evidence"), tokenizer, HARD)
    page = explanation(found, "treering explain joined '<b>\x1b'")
    parsed = Page(page)
    assert parsed.shown == HARD.replace("\x00", "␀").replace("\x1b", "␛").replace("\r", "␍")
    assert len(parsed.tips) == len(found.pieces().spans)
    assert all(address.startswith("#") for address in parsed.addresses)
    assert "'<b>" not in page and "\x1b" not in page
    ru = next(line for line in parsed.tips[0].splitlines() if line.startswith("ru"))
    assert f"{-found.pieces().likelihood[0, 0] / math.log(2):.2f}" in ru


def test_shades_are_pale_where_experts_agree_and_pure_where_one_has_all():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    assert shade([1.0, 0.0], [red, blue]) == (red, 1.0)
    assert shade([0.5, 0.5], [red, blue]) == ((0.5, 0.0, 0.5), 0.0)
    assert shade([1.0], [red]) == (red, 1.0)


def run(*words, **options):
    return CliRunner().invoke(app, ["explain", *map(str, words)], **options)


def test_command_prints_the_text_and_writes_a_page_only_over_its_own(directory, tmp_path):
    page = tmp_path / "pages" / "explanation.html"
    for text in ("Open the <file>", "打开文件"):
        done = run(directory / "joined", text, "-o", page)
        assert done.exit_code == 0, done.exception
        assert text in done.stdout and "evidence:switch=0.1" in done.stdout
        assert Page(page.read_text(encoding="utf-8")).shown == text
    assert list(page.parent.iterdir()) == [page]
    other = tmp_path / "notes.html"
    other.write_text("mine")
    assert "another name" in str(run(directory / "joined", "x", "-o", other).exception)
    assert other.read_text() == "mine"


def test_command_reads_files_and_another_rule_and_speaks_json(directory, tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("Открыть\r\n打开\n".encode())
    for done in (
        run(directory / "joined", "--file", file, "--rule", "mean", "--json"),
        run(directory / "joined", "--file", "-", "--rule", "mean", "--json", input=file.read_bytes()),
    ):
        rows = json.loads(done.stdout)
        assert len(rows) == len(encode(tokenizer, ["Открыть\r\n打开"])[0])
        assert {row["experts"]["ru"]["weight"] for row in rows} == {0.5}
        assert sum(expert["credit"] for expert in rows[0]["experts"].values()) == pytest.approx(1, abs=1e-5)


def test_command_says_what_to_give(directory, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"ab\xff")
    assert "either a text or a file" in str(run(directory / "joined").exception)
    assert "not UTF-8" in str(run(directory / "joined", "--file", binary).exception)
    assert "treering compose" in str(run(directory / "ru", "text", "--rule", "mean").exception)
