"""Publishing: nothing but the model leaves the house, and nothing at all unless it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import compose_directories, load_model, set_rule
from treering.errors import TreeringError
from treering.publishing import leaks, prepare_publication, publish
from treering.publishing.leaks import shorten


@pytest.fixture
def place(expert, tokenizer, tmp_path):
    """An expert's directory with nothing to hide."""
    expert(0, 1).save_pretrained(tmp_path / "model")
    tokenizers.save(tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def saved_pair(expert, tokenizer, place, tmp_path):
    """A composition's directory with nothing to hide."""
    expert(1, 1).save_pretrained(tmp_path / "other")
    tokenizers.save(tokenizer, tmp_path / "other")
    compose_directories({"a": place, "b": tmp_path / "other"}, tmp_path / "joined")
    return tmp_path / "joined"


class Hub:
    """What ``HfApi`` is asked to do; it keeps what was sent."""

    def __init__(self):
        self.calls, self.sent = [], {}

    def create_repo(self, repository, private, exist_ok):
        self.calls.append((repository, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message):
        root = Path(folder_path)
        self.sent = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def hub(monkeypatch):
    """A hub that takes every card."""
    monkeypatch.setattr(ModelCard, "validate", lambda self: None)
    return Hub()


@pytest.mark.parametrize(
    ("file", "content", "where", "kind"),
    [
        ("training.json", {"origin": {"model": "/home/me/secret/base"}}, "training.json: origin.model", "path"),
        ("training.json", {"data": [{"path": "~/notes.txt"}]}, "training.json: data[0].path", "path"),
        ("training.json", {"path": "C:\\Users\\me\\notes.txt"}, "training.json: path", "path"),
        ("training.json", {"path": "../../private/notes.txt"}, "training.json: path", "path"),
        ("training.json", {"path": "clients/acme/notes.jsonl"}, "training.json: path", "path"),
        ("history.json", [{"note": "read from /mnt/share/x.txt today"}], "history.json: [0].note", "path"),
        ("training.json", {"env": "hf_" + "a" * 34}, "training.json", "secret"),
        ("training.json", {"env": "AKIA" + "A" * 16}, "training.json", "secret"),
        ("training.json", {"url": "https://me:password@host/x"}, "training.json", "secret"),
        ("README.md", "-----BEGIN RSA PRIVATE KEY-----", "README.md", "secret"),
        ("README.md", "Made in /Users/me/work", "README.md", "path"),
        ("history.json", "[" * 200_000, "history.json", "file"),
        ("train.arrow", "documents", "train.arrow", "file"),
        ("notes.jsonl", "documents", "notes.jsonl", "file"),
        ("data/x.txt", "documents", "data/x.txt", "file"),
    ],
)
def test_what_would_leak_is_found(place, file, content, where, kind):
    assert leaks(place) == []
    (place / file).parent.mkdir(exist_ok=True)
    (place / file).write_text(content if isinstance(content, str) else json.dumps(content))
    assert [(leak.where, leak.kind) for leak in leaks(place)] == [(where, kind)]


def test_links_leak_and_stages_and_hidden_files_stay_at_home(place):
    (place / "stages" / "1").mkdir(parents=True)
    (place / "stages" / "1" / "notes.txt").write_text("x")
    (place / ".git").mkdir()
    (place / ".git" / "config").write_text("x")
    assert leaks(place) == []
    (place / "training.json").symlink_to("/etc/hostname")
    assert [(leak.where, leak.kind) for leak in leaks(place)] == [("training.json", "file")]


def test_nothing_is_sent_unless_it_is_said(place):
    found = prepare_publication(place, "me/model")
    assert found.files.keys() >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert found.leaks == []
    result = CliRunner().invoke(app, ["publish", str(place), "--repo", "me/model"])
    assert result.exit_code == 0, result.output
    assert "nothing was sent" in result.output and "private if it is made now" in result.output
    assert "nothing in it looks like a path, a secret or a document of yours" in result.output
    result = CliRunner().invoke(app, ["publish", str(place), "--repo", "me/model", "--public"])
    assert "which all would see if it is made now" in result.output


def test_what_leaks_is_never_sent(place, hub):
    (place / "training.json").write_text('{"origin": {"data": "/home/me/x"}}')
    with pytest.raises(TreeringError, match=r"training.json: origin.data names the path /home/me/x"):
        publish(place, "me/model", api=hub)
    assert hub.calls == []
    assert hub.sent == {}


def test_paths_are_shortened_on_the_way_and_the_model_is_the_same(place, hub, tmp_path):
    record = {
        "origin": {"model": "/home/me/base", "hub": "hub:a/b", "text": "embedded:ru", "note": "see /tmp/a/b.txt."}
    }
    (place / "training.json").write_text(json.dumps(record))
    address = publish(place, "me/model", shorten_paths=True, api=hub)
    assert address == "https://huggingface.co/me/model"
    assert hub.calls == [("me/model", True, True)]
    assert json.loads(hub.sent["training.json"])["origin"] == {
        "model": "base", "hub": "hub:a/b", "text": "embedded:ru", "note": "see b.txt."
    }  # fmt: skip
    assert json.loads((place / "training.json").read_text()) == record
    assert hub.sent["model.safetensors"] == (place / "model.safetensors").read_bytes()
    card = hub.sent["README.md"].decode()
    assert card.count("me/model") >= 2
    assert not list(tmp_path.glob(".model*"))


def test_a_composition_that_was_published_loads(expert, tokenizer, place, hub, tmp_path):
    expert(1, 1).save_pretrained(tmp_path / "other")
    tokenizers.save(tokenizer, tmp_path / "other")
    record = {"origin": {"model": "/home/me/base", "sources": ["x"]}, "measured": {"tokens": 5}}
    (place / "training.json").write_text(json.dumps(record))
    compose_directories({"a": place, "b": tmp_path / "other"}, tmp_path / "joined")
    publish(tmp_path / "joined", "me/joined", shorten_paths=True, public=True, api=hub)
    assert hub.calls == [("me/joined", False, True)]
    for name, content in hub.sent.items():
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    assert leaks(tmp_path / "fetched") == []
    assert [name for name, _ in load_model(tmp_path / "fetched").named_experts()] == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        ("modeling_treering.py", lambda text: text + "import os\n", "modeling_treering.py"),
        ("config.json", lambda text: text.replace("modeling_treering.C", "lab/code--model.C"), "config.json: auto_map"),
    ],
)
def test_code_of_others_is_not_handed_on(saved_pair, hub, file, change, where):
    path = saved_pair / file
    path.write_text(change(path.read_text()))
    (leak,) = leaks(saved_pair)
    assert (leak.where, leak.kind) == (where, "file")
    with pytest.raises(TreeringError, match="was not published"):
        publish(saved_pair, "me/joined", api=hub)
    set_rule(saved_pair, "mean")
    assert leaks(saved_pair) == []


@pytest.mark.parametrize(("repository", "told"), [("a b", "cannot be a repository"), ("a/b/c", "cannot be")])
def test_what_cannot_be_published_is_said(place, tmp_path, repository, told):
    with pytest.raises(TreeringError, match=told):
        prepare_publication(place, repository)
    with pytest.raises(TreeringError, match="holds no model"):
        prepare_publication(tmp_path, "me/x")


def test_a_hub_that_refuses_is_told(place, hub, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub, "upload_folder", refuse)
    with pytest.raises(TreeringError, match=r"did not take me/model: Name or service(.|\n)*not sent twice"):
        publish(place, "me/model", api=hub)


def test_a_hub_that_cannot_be_reached_is_told(place, monkeypatch):
    """As the hub's own client finds out, whose exceptions are those of the package beneath it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # Port 9 takes no connection; neither place is asked over a proxy.
    monkeypatch.setattr("huggingface_hub.repocard.ENDPOINT", "http://127.0.0.1:9", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(TreeringError, match=r"did not take me/model:(.|\n)*reaches the hub"):
        publish(place, "me/model", api=Hub())


@given(
    st.recursive(
        st.sampled_from(["/home/x/y", "~/z", "plain text", "a/b", "see /tmp/q/r and /var/s", "C:\\a\\b"])
        | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
    )
)
def test_what_was_shortened_has_no_path_left(value):
    found = json.dumps(shorten(value))
    for path in ("/home", "/tmp", "/var", "~", "\\\\a"):
        assert path not in found
    assert shorten(shorten(value)) == shorten(value)
