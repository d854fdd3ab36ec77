from __future__ import annotations

import json

import pytest
import tensorflow as tf

from pipeline.verbs.doctor.probe import probe

pytestmark = pytest.mark.slow  # it imports TensorFlow


def test_a_sound_tensorflow_says_its_version_and_its_gpus() -> None:
    found = probe()
    assert found["version"] == tf.__version__
    assert found["gpus"] == [one.name for one in tf.config.list_physical_devices("GPU")]
    assert float(str(found["import_s"])) >= 0
    assert json.loads(json.dumps(found)) == found


def test_a_tensorflow_that_computes_wrongly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf, "reduce_sum", lambda values: 1.0)
    with pytest.raises(ArithmeticError, match="a matrix product is wrong"):
        probe()
