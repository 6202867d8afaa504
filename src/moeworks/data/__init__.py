"""Text to batches: documents, tokenizer, token shards on disk, and the order in which they are read.

files, stdlib:, hf:  ─ iter_documents ─▶ Document ─ prepare ─▶ PreparedCorpus(tokenizer, train, validation)
                                                                ├─▶ TrainLoader    batch(step)
                                                                └─▶ ValidationSet  batches()
"""

from moeworks.data.batches import Batch
from moeworks.data.corpus import iter_documents
from moeworks.data.documents import Document
from moeworks.data.loader import TrainLoader
from moeworks.data.shards import PreparedCorpus, prepare
from moeworks.data.split import is_validation
from moeworks.data.store import TokenStore
from moeworks.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from moeworks.data.validation import ValidationSet

__all__ = [
    "Batch",
    "Document",
    "PreparedCorpus",
    "TokenStore",
    "Tokenizer",
    "TrainLoader",
    "ValidationSet",
    "build_tokenizer",
    "is_validation",
    "iter_documents",
    "load_tokenizer",
    "prepare",
]
