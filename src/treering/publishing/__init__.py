"""What a stranger needs to use a model: a card that tells what it is, and an upload that gives nothing else away."""

from treering.publishing.card import card, renew_card, stated_licence, write_card
from treering.publishing.leaks import Leak, leaks
from treering.publishing.upload import Publication, prepare_publication, publish

__all__ = [
    "Leak",
    "Publication",
    "card",
    "leaks",
    "prepare_publication",
    "publish",
    "renew_card",
    "stated_licence",
    "write_card",
]
