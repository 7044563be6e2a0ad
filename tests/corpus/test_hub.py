from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from treering.corpus import Source, read_documents
from treering.errors import TreeringError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A directory laid out as hub datasets are: one file a split."""
    data = tmp_path / "wiki" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 30), ("test", 4)):
        rows = {"id": [f"{split}-{n}" for n in range(count)], "text": ["слово"] * count, "url": ["x"] * count}
        pq.write_table(pa.table(rows), data / f"{split}-00000-of-00001.parquet")
    return data.parent


@pytest.mark.parametrize("streaming", [True, False])
def test_splits_stream_through_datasets(
    dataset: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train = list(read_documents(Source(path=f"hub:{dataset}", streaming=streaming)))
    assert [d.id for d in train] == [f"train-{n}" for n in range(30)]
    assert len(list(read_documents(Source(path=f"hub:{dataset}", split="test", streaming=streaming)))) == 4
    assert len(list(read_documents(Source(path=f"hub:{dataset}", limit=5, streaming=streaming)))) == 5


def test_json_datasets(tmp_path: Path) -> None:
    rows = [{"id": n, "body": f"text {n}"} for n in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(read_documents(Source(path=f"hub:{tmp_path}", text_field="body")))
    assert [(d.id, d.text) for d in found] == [(str(n), f"text {n}") for n in range(3)]


def test_what_is_wrong_is_said(dataset: Path) -> None:
    with pytest.raises(TreeringError, match="no field 'body'; the fields are: id, text, url"):
        list(read_documents(Source(path=f"hub:{dataset}", text_field="body")))
    with pytest.raises(TreeringError, match="could not be read"):
        list(read_documents(Source(path=f"hub:{dataset}", split="nope")))


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in ("hub:nobody/nothing", "nobody/nothing"):
        with pytest.raises(TreeringError, match=r"The dataset nobody/nothing \(train\) could not be read"):
            list(read_documents(path))
