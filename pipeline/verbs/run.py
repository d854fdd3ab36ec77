"""`run`: trains, evaluates and records a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.builders import GROUPS, check_keys
from pipeline.config.effects import Rule
from pipeline.config.named_runs import names_runs, weights_run
from pipeline.config.schema import Config
from pipeline.libraries import import_slow
from pipeline.tracking.addresses import ADOPTED_RUN, adopted_run_id
from pipeline.verbs import Verb

if TYPE_CHECKING:
    from pipeline.data.own_pictures import Pictures

OF_OPENED_RUN = Rule(
    keys=("tracking.experiment", "tracking.run_name", "tracking.artifact_root"),
    when=lambda config: adopted_run_id() is not None,
    because=f"on the run that {ADOPTED_RUN} names, which has been opened already",
    mend="leave it out; mlflow run takes --experiment-name and --run-name",
    nothing=(None,),
)
RUN = Verb(
    name="run",
    help="train, evaluate and record one model (the default)",
    entry="pipeline.run:run",
    check="pipeline.verbs.run:require_possible",
    rules=(OF_OPENED_RUN,),
    ignores=frozenset({"run_id"}),
    records=True,
)


def require_possible(config: Config) -> Pictures | None:
    """Refuses a run that cannot work, as far as its data, keys and store tell without TensorFlow.

    A run that `mlflow run` has opened is not checked: it records why it fails. Returns the
    pictures that `require_data` has listed.

    Raises:
        RequestError: the data set is not there, the keys of the model do not fit together, or the
            run or file that `train.teacher` or `model.weights` names does not exist.
    """
    from pipeline.data.load import require_data
    from pipeline.training.pretrained import require_weights

    if adopted_run_id():
        return None
    for group in GROUPS:
        if group != "dataset":  # which may be cached
            check_keys(group, getattr(config, group), getattr(config.choices, group))
    listed = require_data(config)
    if weights_run(config) is None:
        require_weights(config.model)
    if names_runs(config):
        import_slow("pipeline.tracking.runs").require_named_runs(config)
    return listed
