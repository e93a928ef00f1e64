"""TensorFlow, imported without its noise: on the CPU, with a fixed number of threads.

Everything of this package that needs TensorFlow takes ``tf`` from here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

__all__ = ["THREADS", "quiet", "settings", "tf"]

THREADS = 2

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    # Of TensorFlow's own dependencies, at each import.
    warnings.simplefilter("ignore")
    import tensorflow as tf

try:
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
except RuntimeError:
    # Whoever used TensorFlow before us in this process has fixed them; `settings` tells what they are.
    logging.getLogger(__name__).info("the threads of TensorFlow are those it was started with")

_LOGGERS = ("tensorflow", "tf2onnx", "absl")


def settings() -> str:
    """What the outputs of TensorFlow depend on, in words."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return f"TensorFlow {tf.__version__}, CPU, {threads or 'all'} threads"


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def quiet() -> Iterator[list[logging.LogRecord]]:
    """Keep the warnings and log lines of TensorFlow and tf2onnx to ourselves; yields the errors among the latter."""
    keep = _Records()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.handlers, logger.propagate = [keep], False
            yield keep.records
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
