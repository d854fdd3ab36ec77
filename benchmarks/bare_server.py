"""Serves a Keras model with FastAPI, as one would without this project: four ways, no checks.

usage: python -m benchmarks.bare_server <folder with model.keras> <port>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel

keras.config.disable_interactive_logging()
model = keras.saving.load_model(Path(sys.argv[1]) / "model.keras", compile=False)
graph = tf.function(
    lambda images: model(images, training=False),
    input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)],
)
app = FastAPI()


class Images(BaseModel):
    """The body of a request."""

    inputs: list[Any]


@app.post("/predict")
def predict(images: Images) -> dict[str, Any]:
    """Keras' own `predict`."""
    return {"predictions": model.predict(np.array(images.inputs, np.uint8)).tolist()}


@app.post("/call")
def call(images: Images) -> dict[str, Any]:
    """The model called, as Keras' documentation advises for small inputs."""
    batch = np.array(images.inputs, np.uint8)
    return {"predictions": model(batch, training=False).numpy().tolist()}


@app.post("/graph")
def compiled(images: Images) -> dict[str, Any]:
    """The model's call as a compiled graph."""
    return {"predictions": graph(np.array(images.inputs, np.uint8)).numpy().tolist()}


@app.post("/graph_in_loop")
async def compiled_in_loop(request: Request) -> dict[str, Any]:
    """The same in the event loop, without validating the body."""
    images = await request.json()
    return {"predictions": graph(np.array(images["inputs"], np.uint8)).numpy().tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
