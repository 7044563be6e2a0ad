"""Documents in, packed blocks of token IDs out."""

from treering.corpus.documents import Document, read_documents
from treering.corpus.source import Source, embedded, split_of

__all__ = ["Document", "Source", "embedded", "read_documents", "split_of"]
