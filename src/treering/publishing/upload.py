"""Publishing on the hub: looked through first, shown by default, and then sent by ``huggingface_hub``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from treering.errors import TreeringError
from treering.output import link_or_copy, write_file
from treering.publishing.card import README, is_written, renewed, write_card
from treering.publishing.leaks import Leak, files, leaks, shorten, told
from treering.reading import printable


@dataclass(frozen=True)
class Publication:
    """What would be published: where, which files of which sizes in bytes, and what would leak."""

    repository: str
    files: dict[str, int]
    leaks: list[Leak]


def prepare_publication(directory: str | os.PathLike[str], repository: str, shorten_paths: bool = False) -> Publication:
    """Look a model through as `publish` will, and write its card if it has none.

    Args:
        repository: ``OWNER/NAME`` on the hub.
        shorten_paths: of paths in its records, publish the last part alone; the directory stays as it is.

    Raises:
        TreeringError: there is no model, or the repository cannot have such a name.
    """
    with _prepared(Path(directory), repository, shorten_paths) as staged:
        return _publication(staged, repository)


def publish(
    directory: str | os.PathLike[str],
    repository: str,
    shorten_paths: bool = False,
    public: bool = False,
    message: str = "Publish the model",
    api: HfApi | None = None,
) -> str:
    """Upload a model that would leak nothing, as one commit; returns its address.

    What was uploaded before and broken off is not sent again: the hub knows large files by their content.

    Args:
        public: make the repository one that everybody sees, if it is made now; else it is private.

    Raises:
        TreeringError: something would leak, the card is not what the hub takes, or the hub refuses or cannot be
            reached.
    """
    api = api or HfApi()
    with _prepared(Path(directory), repository, shorten_paths) as staged:
        if found := _publication(staged, repository).leaks:
            raise TreeringError(
                f"{directory} was not published, as more than the model would leave the house:\n{told(found)}\n"
                "Take it away; paths are shortened with --shorten-paths."
            )
        try:
            ModelCard.load(staged / README).validate()
            api.create_repo(repository, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=staged, commit_message=message)
        except Exception as error:  # the hub, and httpx beneath it, each raise their own
            raise TreeringError(
                f"The hub did not take {printable(repository)}: {printable(str(error), 500)}\nSee that this machine "
                "reaches the hub and is logged in (hf auth login), and run the same command again: what has arrived "
                "is not sent twice."
            ) from error
    return f"https://huggingface.co/{repository}"


def _publication(staged: Path, repository: str) -> Publication:
    sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in files(staged)}
    return Publication(repository, sizes, leaks(staged))


@contextmanager
def _prepared(root: Path, repository: str, shorten_paths: bool) -> Iterator[Path]:
    """The files to publish in a directory of their own: a card of ours under the repository's name, short paths."""
    if not (root / "config.json").is_file():
        raise TreeringError(f"{root} holds no model: there is no config.json.")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise TreeringError(f"{printable(repository)} cannot be a repository: {error}") from None
    write_card(root)
    with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.publish-") as scratch:
        staged = Path(scratch)
        for path in files(root):
            place = staged / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                place.symlink_to(path.readlink())
            elif shorten_paths and path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json"):
                values = json.loads(path.read_text(encoding="utf-8"))
                changed = shorten(values)
                if changed == values:
                    link_or_copy(path, place)
                else:
                    place.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            elif path != root / README or not is_written(path):
                link_or_copy(path, place)
        if is_written(root / README):
            write_file(staged / README, renewed(root, name=repository))
        yield staged
