from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.config.effects import (
    Rule,
    may_lack_effect,
    refuse_without_effect,
    ruled_keys,
    untested,
    with_effect,
    with_request,
    without_effect,
)
from pipeline.config.schema import Config, validate
from pipeline.system.errors import RequestError
from tests.commands import composed, configured, merged

FOLDER = "dataset=folder dataset.path=photos dataset.on_bad=refuse"
UNEVALUATED = "evaluate.test=false preprocess.validation_size=0"
ALBUM = "folder dataset.path=photos"
UNTAUGHT = "train.teacher=abcd train.teacher_weight=0"
# Words of which the first has no effect, what is said of it, and what gives it one.
IDLE = [
    ("evaluate.metrics=[ece] evaluate.test=false", "the test split is not used", "true"),
    ("evaluate.plots=[mistakes] evaluate.test=false", "the test split is not used", "true"),
    ("tracking.uri=http://a tracking.offline=true", "contacts no store", "false"),
    (
        "tracking.uri=http://a model=efficientnet_lite0 model.weights=a.h5 tracking.offline=true",
        "contacts no store",
        "false",
    ),
    (f"dataset.max_bad=0.2 {FOLDER}", "dataset.on_bad=refuse", "skip"),
    ("preprocess.seed=0 preprocess.validation_size=0", "preprocess.validation_size=0", "1"),
    ("augment=combined augment.flip=none", "all of its changes off", "random"),
    ("augment=combined augment.rand_augment=2 augment.magnitude=0", "changes off", "1"),
    (
        "augment=flip_and_shift augment.horizontal_flip=false augment.shift=0",
        "all of its changes off",
        "0.1",
    ),
    ("augment.magnitude=3 augment=flip_crop augment.rand_augment=0", "augment.rand_augment=0", "1"),
    ("augment.rand_augment=1 augment=flip_crop augment.magnitude=0", "augment.magnitude=0", "1"),
    ("model.activation=gelu model.hidden=[]", "model.hidden=[]", "[8]"),
    ("model.dropout=0.3 model.hidden=[]", "model.hidden=[]", "[8]"),
    ("model.batch_norm=true model.hidden=[]", "model.hidden=[]", "[8]"),
    ("optimizer.nesterov=true optimizer=sgd optimizer.momentum=0", "momentum=0", "0.5"),
    ("schedule.start=0.1 schedule=one_cycle schedule.warmup=0", "schedule.warmup=0", "0.1"),
    ("schedule.start=0.1 schedule=warmup schedule.warmup=0", "schedule.warmup=0", "0.1"),
    ("schedule=exponential schedule.staircase=true", "schedule.staircase=true", "false"),
    (
        "schedule.decay_rate=0.1 schedule=exponential schedule.staircase=true",
        "schedule.staircase=true",
        "false",
    ),
    ("model.convolutions=2 model=cnn model.filters=[]", "it is about convolutions", "[8]"),
    ("model.batch_norm=true model=cnn model.filters=[]", "it is about convolutions", "[8]"),
    ("model.activation=elu model=cnn model.filters=[] model.dense=0", "without such a", "8"),
    ("model.drop_path=0.1 model=vit model.depth=1", "one block", "2"),
    ("model.drop_path=0.1 model=mixer model.depth=1", "one block", "2"),
    (
        "model.drop_path=0.1 model=convnext model.widths=[8] model.blocks=[1]",
        "one block",
        "[2]",
    ),
    ("schedule=cosine schedule.alpha=1", "keep the learning rate as it is", "0.5"),
    ("schedule=exponential schedule.decay_rate=1", "keep the learning rate as it is", "0.5"),
    ("schedule=linear schedule.end_learning_rate=0.001", "keep the learning rate as", "0.0001"),
    ("schedule=flat_cosine schedule.end=1", "keep the learning rate as it is", "0"),
    ("schedule=warmup schedule.warmup=0", "keep the learning rate as it is", "0.1"),
    ("schedule=warmup schedule.start=1", "keep the learning rate as it is", "0.5"),
    ("schedule=one_cycle schedule.start=1 schedule.end=1", "keep the learning rate as", "0"),
    ("dataset.download=true dataset=mnist dataset.folder=idx", "whose files are read", "null"),
    ("dataset.download=true dataset=cifar10 dataset.path=a.tgz", "whose files are read", "null"),
    ("train.monitor=val/loss preprocess.validation_size=0", "no images are validated", "1"),
    (f"evaluate.views=flip {UNEVALUATED}", "nothing is evaluated", "0.1"),
    (f"evaluate.batch_size=64 {UNEVALUATED}", "nothing is evaluated", "0.1"),
    ("ingest.checks.bad_files.action=refuse dataset=digits", "not made of picture files", ALBUM),
    ("ingest.checks.bad_files.limit=0.5 dataset=digits", "not made of picture files", ALBUM),
    ("evaluate.leakage=true dataset=fashion_mnist", "no groups that a split could ignore", ALBUM),
    ("ingest.checks.smallest_class.limit=0", "no class has fewer images", "1"),
    ("train.patience=5 train.epochs=5", "the training ends first", "6"),
    ("train.teacher_weight=0.5 train.teacher=null", "without a teacher", "abcd"),
    ("train.teacher_temperature=2 train.teacher=null", "without a teacher", "abcd"),
    (UNTAUGHT, "train.teacher_weight=0", "0.1"),
    (f"train.teacher_temperature=3 {UNTAUGHT}", "train.teacher_weight=0", "0.1"),
    (
        "train.label_smoothing=0.1 train.teacher=abcd train.teacher_weight=1",
        "the teacher's answers alone",
        "0.5",
    ),
]
IDLE += [
    (f"ingest.checks.{name}.limit=0.5 {of}ingest.checks.{name}.action=ignore", "ignore", "warn")
    for name, of in (
        ("smallest_class", ""),
        ("imbalance", ""),
        ("bad_files", f"dataset={ALBUM} "),
        ("conflicts", ""),
        ("blank", ""),
    )
]
IDLE += [
    ("ingest.checks.conflicts.limit=1", "where it is 1 or more", "0.9"),
    ("ingest.checks.blank.limit=2", "where it is 1 or more", "0.9"),
    (
        f"ingest.checks.bad_files.limit=1 dataset={ALBUM} ingest.checks.bad_files.limit=1",
        "1 or more",
        "0.9",
    ),
]


def checked(*words: str) -> Config:
    """The configuration for words that `compose` might refuse."""
    return validate(composed(*merged(words), verb="run"))


@pytest.mark.parametrize(("line", "because", "other"), IDLE)
def test_a_typed_setting_without_effect_is_refused_with_the_reason_and_what_to_do(
    line: str, because: str, other: str
) -> None:
    words = line.split()
    with pytest.raises(RequestError) as caught:
        refuse_without_effect(words, [checked(*words)])
    said = str(caught.value)
    assert said.startswith(f"{words[0]} has no effect ")
    assert because in said.partition("; ")[0]
    assert said.partition("; ")[2].startswith(
        ("leave it out", "turn one on, ", "choose ", "set it ")
    )
    assert "\n" not in said
    mended = merged([*words, *f"{words[-1].partition('=')[0]}={other}".split()])
    refuse_without_effect(mended, [checked(*mended)])


def test_each_rule_has_a_case() -> None:
    assert {line.partition("=")[0] for line, _, _ in IDLE} == ruled_keys()


@pytest.mark.parametrize(
    "line",
    [
        "evaluate.plots=[] evaluate.metrics=[] evaluate.test=false",
        "tracking.uri=null tracking.artifact_root=s3://a tracking.offline=true",
        "tracking.uri=http://a tracking.offline=true train.teacher=abcd",
        f"dataset.max_bad=0 {FOLDER}",
        "model.dropout=0 model.hidden=[]",
        "optimizer.nesterov=false optimizer=sgd optimizer.momentum=0",
        "optimizer.momentum=0 optimizer=sgd",
        "train.patience=null train.epochs=1",
        "evaluate.views=flip evaluate.temperature=true evaluate.test=false",
        "model=cnn model.dense=0 model.activation=gelu model.dropout=0.1",
        "model=cnn model.filters=[] model.convolutions=1 model.batch_norm=false",
        "schedule=one_cycle schedule.start=1 schedule.end=0",
        "schedule=warmup schedule.end=0.5 schedule=one_cycle schedule.warmup=0",
        "train.keep=best train.epochs=1",  # the same words as for more epochs
        "dataset.download=false dataset=mnist dataset.folder=idx",
        "train.monitor=val/loss preprocess.validation_size=0 dataset=npz dataset.path=a.npz",
        f"evaluate.views=flip {UNEVALUATED} dataset=folder dataset.path=photos",
        "ingest.checks.bad_files.action=ignore dataset=digits",
        "ingest.checks.imbalance.limit=1 ingest.checks.smallest_class.limit=1",
    ],
)
def test_what_asks_for_nothing_or_has_another_effect_is_no_mistake(line: str) -> None:
    words = line.split()
    refuse_without_effect(words, [checked(*words)])


@pytest.mark.parametrize("recipe", ["debug", "overfit"])
def test_what_files_set_is_not_refused(recipe: str) -> None:
    assert not configured(f"experiment={recipe}").evaluate.test


def test_composing_refuses_what_no_function_of_the_api_uses() -> None:
    with pytest.raises(RequestError, match=r"^train.patience=20 has no effect where it is not"):
        configured("train.patience=20")
    with pytest.raises(RequestError, match=r"^ingest.checks.blank={action: ignore, limit: 1} has"):
        configured("ingest.checks.blank={action: ignore, limit: 1}")
    # pipeline.evaluate(…, split="val") computes them, and pipeline.find_runs asks that store.
    config = configured("evaluate.test=false", "evaluate.metrics=[ece]")
    assert config.evaluate.metrics == ["ece"]
    assert configured("tracking.offline=true", "tracking.uri=http://a").tracking.uri == "http://a"


def test_a_setting_of_a_sweep_needs_an_effect_in_one_job_only() -> None:
    few, many = checked("train.epochs=2"), checked("train.epochs=20", "train.patience=5")
    few.train.patience = 5
    words = ["train.epochs=2,20", "train.patience=5"]
    assert [word for word, _ in without_effect(words, [few])] == ["train.patience=5"]
    refuse_without_effect(words, [few, many])
    refuse_without_effect(words, [])
    with pytest.raises(RequestError, match=r"^train.patience=5 has no effect"):
        refuse_without_effect(words, [few, few])
    assert may_lack_effect(words)
    assert not may_lack_effect(["train.epochs=2", "seed=1", "~optimizer.nesterov"])


def test_words_without_effect_are_left_out_with_the_keys_of_such_a_choice() -> None:
    words = ["schedule=cosine", "schedule.alpha=1", "seed=1", "train.monitor=val/loss"]
    words += ["preprocess.validation_size=0"]
    assert with_effect(words, checked(*words)) == ["seed=1", "preprocess.validation_size=0"]
    words[1] = "schedule.alpha=0.5"
    assert with_effect(words[:3], checked(*words[:3])) == words[:3]


def test_rules_of_a_verb_see_its_request_beside_the_configuration() -> None:
    rule = Rule(
        keys=("compare.top", "seed"),
        when=lambda config: config.compare.sweep and not config.seed,
        because="here",
        mend="leave it out",
    )
    one = with_request(configured(), "compare", SimpleNamespace(top=3, sweep="latest"))
    with pytest.raises(RequestError, match=r"^compare.top=3 has no effect here; leave it out$"):
        refuse_without_effect(["compare.top=3"], [one], rules=(rule,))
    other = with_request(configured(), "compare", SimpleNamespace(top=3, sweep=None))
    refuse_without_effect(["compare.top=3", "seed=0"], [other], rules=(rule,))
    config = configured()
    assert with_request(config, "ingest", None).ingest is config.ingest


def test_a_run_without_its_test_split_keeps_everything_else() -> None:
    config = configured()
    assert not untested(config).evaluate.test
    assert untested(config).evaluate.metrics == config.evaluate.metrics


def test_an_address_is_refused_without_its_password() -> None:
    words = ["tracking.uri=http://me:secret@a", "tracking.offline=true"]
    with pytest.raises(RequestError, match=r"^tracking.uri=http://.*@a has") as caught:
        refuse_without_effect(words, [checked(*words)])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("optimizer", ["adam", "muon", "schedule_free"])
def test_an_optimizer_clips_in_one_way(optimizer: str) -> None:
    one = (f"optimizer={optimizer}", "optimizer.clipnorm=1")
    with pytest.raises(RequestError, match=r"^optimizer.clipnorm and optimizer.global_clipnorm: "):
        configured(*one, "optimizer.global_clipnorm=1")
    assert configured(*one).optimizer["clipnorm"] == 1.0
