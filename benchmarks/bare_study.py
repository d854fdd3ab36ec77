"""The study to write without this project's sweeps: Optuna proposes, Keras fits, MLflow records.

`python -m benchmarks.bare_study <folder with train_images.npy, train_labels.npy> <epochs>
--learning-rates 0.001 0.003 --dropouts 0.1 0.3`
"""

import argparse
from pathlib import Path

import keras
import mlflow
import numpy as np
import optuna

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("epochs", type=int)
parser.add_argument("--learning-rates", type=float, nargs="+", required=True)
parser.add_argument("--dropouts", type=float, nargs="+", required=True)
arguments = parser.parse_args()

images = np.load(arguments.folder / "train_images.npy").reshape(-1, 784).astype("float32") / 255
labels = np.load(arguments.folder / "train_labels.npy")
grid = {"learning_rate": arguments.learning_rates, "dropout": arguments.dropouts}


def objective(trial: optuna.Trial) -> float:
    """Validation accuracy of one network after its last epoch."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    dropout = trial.suggest_float("dropout", 0, 0.9)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    adam = keras.optimizers.Adam(trial.suggest_float("learning_rate", 1e-5, 1, log=True))
    model.compile(
        adam, "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=50
    )
    with mlflow.start_run(run_name=f"trial {trial.number}"):
        mlflow.log_params({**trial.params, "epochs": arguments.epochs})
        history = model.fit(
            images[5000:],
            labels[5000:],
            batch_size=128,
            epochs=arguments.epochs,
            validation_data=(images[:5000], labels[:5000]),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=log_epoch)],
            verbose=2,
        )
    return history.history["val_accuracy"][-1]


def log_epoch(epoch: int, metrics: dict[str, float]) -> None:
    """Logs an epoch's metrics to the run that is open."""
    mlflow.log_metrics(metrics, step=epoch)


mlflow.set_experiment("study")
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=0))
study.optimize(objective)  # to the end of the grid
print(study.best_value, study.best_params)
