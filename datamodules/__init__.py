"""Lightning data modules: one file per family of data sets.

The folder stands at the root of the repository and installs as ``lightning_stable.datamodules``.
"""

if __name__ != "lightning_stable.datamodules":
    # Under the bare name every class would exist a second time and isinstance checks between the copies would fail.
    raise ImportError(f"Import this package as `lightning_stable.datamodules`. Got `{__name__}`.")

from lightning_stable.datamodules.adding import AddingDataModule
from lightning_stable.datamodules.arithmetic import ArithmeticDataModule
from lightning_stable.datamodules.atis import ATISDataModule
from lightning_stable.datamodules.bucketing import BucketBatchSampler
from lightning_stable.datamodules.chorales import ChoralesDataModule
from lightning_stable.datamodules.copy_memory import CopyMemoryDataModule
from lightning_stable.datamodules.download import DownloadError, fetch
from lightning_stable.datamodules.fixed_patterns import FixedPatternsDataModule
from lightning_stable.datamodules.generated import GeneratedDataModule
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.datamodules.linear_system import LinearSystem, LinearSystemDataModule
from lightning_stable.datamodules.memory_throughput import MemoryThroughputDataModule
from lightning_stable.datamodules.padded import PaddedBatch, pad
from lightning_stable.datamodules.parentheses import ParenthesesDataModule
from lightning_stable.datamodules.penn_treebank import PennTreebankDataModule
from lightning_stable.datamodules.perceptron_capacity import PerceptronCapacityDataModule
from lightning_stable.datamodules.python_docs import PythonDocsDataModule
from lightning_stable.datamodules.random_function import RandomFunctionDataModule
from lightning_stable.datamodules.sequences import SequenceDataModule
from lightning_stable.datamodules.stream import ColumnStream, lay_out_columns
from lightning_stable.datamodules.text import TextDataModule
from lightning_stable.datamodules.text8 import Text8DataModule
from lightning_stable.datamodules.unigram import unigram_perplexity
from lightning_stable.datamodules.vocabulary import DictVocabulary, Vocabulary
from lightning_stable.datamodules.wikitext2 import WikiText2DataModule

__all__ = [
    "ATISDataModule",
    "AddingDataModule",
    "ArithmeticDataModule",
    "BucketBatchSampler",
    "ChoralesDataModule",
    "ColumnStream",
    "CopyMemoryDataModule",
    "DictVocabulary",
    "DownloadError",
    "FixedPatternsDataModule",
    "GeneratedDataModule",
    "LanguageModelingDataModule",
    "LinearSystem",
    "LinearSystemDataModule",
    "MemoryThroughputDataModule",
    "PaddedBatch",
    "ParenthesesDataModule",
    "PennTreebankDataModule",
    "PerceptronCapacityDataModule",
    "PythonDocsDataModule",
    "RandomFunctionDataModule",
    "SequenceDataModule",
    "Text8DataModule",
    "TextDataModule",
    "Vocabulary",
    "WikiText2DataModule",
    "fetch",
    "lay_out_columns",
    "pad",
    "unigram_perplexity",
]
