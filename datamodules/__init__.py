"""Lightning data modules: one file per family of data sets.

The folder stands at the root of the repository and installs as ``lightning_stable.datamodules``.
"""

if __name__ != "lightning_stable.datamodules":
    # Under the bare name every class would exist a second time and isinstance checks between the copies would fail.
    raise ImportError(f"Import this package as `lightning_stable.datamodules`. Got `{__name__}`.")

from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.datamodules.linear_system import LinearSystem, LinearSystemDataModule
from lightning_stable.datamodules.python_docs import PythonDocsDataModule
from lightning_stable.datamodules.stream import ColumnStream, lay_out_columns
from lightning_stable.datamodules.text import TextDataModule
from lightning_stable.datamodules.unigram import unigram_perplexity
from lightning_stable.datamodules.vocabulary import DictVocabulary, Vocabulary

__all__ = [
    "ColumnStream",
    "DictVocabulary",
    "LanguageModelingDataModule",
    "LinearSystem",
    "LinearSystemDataModule",
    "PythonDocsDataModule",
    "TextDataModule",
    "Vocabulary",
    "lay_out_columns",
    "unigram_perplexity",
]
