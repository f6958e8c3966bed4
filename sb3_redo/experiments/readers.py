"""Lists the readers of sweep files whose runs are programs of this room; :mod:`sb3_redo.sweeps` is handed them."""

from sb3_redo.experiments.classifier_reader import ClassifierReader
from sb3_redo.experiments.offline_reader import OfflineReader

READERS = (ClassifierReader, OfflineReader)
