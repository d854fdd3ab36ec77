"""The script to write without this project: trains and evaluates, tracks nothing.

`python -m benchmarks.bare_script <folder with train_images.npy … test_labels.npy> [epochs]`
"""

import argparse
from pathlib import Path

import keras
import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("epochs", type=int, nargs="?", default=20)
parser.add_argument("--learning-rate", type=float, default=0.001)
parser.add_argument("--dropout", type=float, default=0.2)
arguments = parser.parse_args()

names = ("train_images", "train_labels", "test_images", "test_labels")
x_train, y_train, x_test, y_test = (np.load(arguments.folder / f"{name}.npy") for name in names)
x_train = x_train.reshape(-1, 784).astype("float32") / 255
x_test = x_test.reshape(-1, 784).astype("float32") / 255
y_train, y_test = keras.utils.to_categorical(y_train), keras.utils.to_categorical(y_test)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((784,)),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dropout(arguments.dropout),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(arguments.dropout),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
adam = keras.optimizers.Adam(arguments.learning_rate)
model.compile(adam, "categorical_crossentropy", metrics=["accuracy"], steps_per_execution=50)
held_out = (x_train[:5000], y_train[:5000])
x_fitted, y_fitted = x_train[5000:], y_train[5000:]
model.fit(x_fitted, y_fitted, 128, arguments.epochs, verbose=2, validation_data=held_out)
print(model.evaluate(x_test, y_test, verbose=0))
