"""Whether a corpus is what preparing it again would give, told from its manifest and the sources' hashes alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from treering.corpus.documents import as_source, is_hub, source_files
from treering.corpus.preparation import CorpusRecipe, without_machine
from treering.corpus.prepared import FORMAT_VERSION, MANIFEST, ORDER, SPLIT_RULE, SourceRecord, load_manifest
from treering.corpus.source import Source
from treering.corpus.streams import Receipt, open_stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def is_prepared(recipe: CorpusRecipe, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the recipe's output is a corpus that was prepared in this very way of these very files.

    What lies on the hub or behind a URL is taken to be what it was.

    Raises:
        TreeringError: the output is a damaged corpus, or a source is not there.
    """
    from treering.tokenizer import identity

    if not Path(recipe.output, MANIFEST).is_file():
        return False
    manifest = load_manifest(recipe.output)
    sources = [as_source(source) for source in recipe.sources]
    then = (
        *(manifest.format_version, manifest.split_rule, manifest.order, manifest.tokenizer.identity),
        *(manifest.block_size, manifest.validation_share, manifest.calibration_share),
        *(manifest.mix, manifest.seed, manifest.duplicate_bytes),
        *(record.source for record in manifest.sources),
    )
    now = (
        *(FORMAT_VERSION, SPLIT_RULE, ORDER, identity(tokenizer)),
        *(recipe.block_size, recipe.validation, recipe.calibration),
        *(recipe.mix, recipe.seed, recipe.duplicate_bytes),
        *(without_machine(source) for source in sources),
    )
    return then == now and all(map(_is_unchanged, manifest.sources, sources))


def _is_unchanged(record: SourceRecord, source: Source) -> bool:
    """Whether the files that were read are the bytes that they were; of a source without limit, no others are there."""
    if is_hub(source):
        return True
    then, now = {file.name: file for file in record.files}, {name: path for path, name in source_files(source)}
    if not then.keys() <= now.keys() or (source.limit is None and then.keys() != now.keys()):
        return False
    receipt = Receipt()
    for name in (name for name in then if "://" not in now[name]):
        with open_stream(now[name], name, "", receipt):
            pass
    return all(file.sha256 == then[file.name].sha256 for file in receipt.files)
