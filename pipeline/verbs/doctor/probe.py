"""Imports TensorFlow, computes a matrix product, and prints the results as JSON.

It runs in a separate process, because a broken installation may crash it or never return.
"""

from __future__ import annotations

import json
import time


def probe() -> dict[str, object]:
    """TensorFlow's version, its GPUs, and the seconds it took to import.

    Raises:
        ArithmeticError: the product of two small matrices is wrong.
    """
    started = time.perf_counter()
    import tensorflow as tf

    seconds = time.perf_counter() - started
    ones = tf.ones((64, 64))
    if float(tf.reduce_sum(ones @ ones)) != 64**3:
        raise ArithmeticError("a matrix product is wrong")
    return {
        "version": tf.__version__,
        "import_s": round(seconds, 1),
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
    }


if __name__ == "__main__":
    print(json.dumps(probe()))
