"""Lists the readers of sweep files whose runs are not the zoo's, for :mod:`sb3_redo.sweeps`."""

from sb3_redo.experiments.classifier_reader import ClassifierReader
from sb3_redo.experiments.offline_reader import OfflineReader

READERS = (ClassifierReader, OfflineReader)
