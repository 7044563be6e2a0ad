"""Documents in, packed blocks of token IDs out."""

from treering.corpus.documents import Document, read_documents, training_texts
from treering.corpus.mixing import Mix
from treering.corpus.packing import Blocks, pack
from treering.corpus.preparation import CorpusRecipe, prepare
from treering.corpus.prepared import Corpus, Manifest, load_held_out, load_manifest, require_match
from treering.corpus.repetition import is_prepared
from treering.corpus.source import Source, embedded, split_of
from treering.corpus.windows import Window, windows

__all__ = [
    "Blocks",
    "Corpus",
    "CorpusRecipe",
    "Document",
    "Manifest",
    "Mix",
    "Source",
    "Window",
    "embedded",
    "is_prepared",
    "load_held_out",
    "load_manifest",
    "pack",
    "prepare",
    "read_documents",
    "require_match",
    "split_of",
    "training_texts",
    "windows",
]
