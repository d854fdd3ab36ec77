"""The verb `predict`, from files of images to a table of classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from rich.table import Table
from rich.text import Text

from pipeline.config.schema import Config
from pipeline.data.files import FoundFiles, Unreadable
from pipeline.data.pictures import MODES
from pipeline.data.polarity import to_invert, with_inverted
from pipeline.data.reading import Block, Opener, find_images, read_blocks
from pipeline.data.values import Array, images_at_once
from pipeline.system.errors import PipelineError, RequestError, counted, in_percent
from pipeline.system.files import replacing, require_others, user_path
from pipeline.system.folders import require_writable
from pipeline.system.terminal import (
    as_line,
    as_text,
    native_messages_to,
    plain_console,
    progress_bar,
    standard_output,
)
from pipeline.verbs.predict import Predict
from pipeline.verbs.predict.writers import WRITERS, PredictedBlock

if TYPE_CHECKING:
    from pipeline.tracking.models import LoadedModel
    from pipeline.tracking.values import RecordedRun
    from pipeline.verbs.predict.sheet import Sheet

Classify = Callable[[Block], PredictedBlock]


class Tally:
    """Counts images per class, with their mean probability."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.probabilities: defaultdict[str, float] = defaultdict(float)

    def add(self, predicted: PredictedBlock) -> None:
        """Counts the most probable class of each image."""
        best, highest = predicted.top[:, 0], predicted.probabilities.max(axis=1)
        for index in np.unique(best):
            name = predicted.class_names[index]
            self.images[name] += int((best == index).sum())
            self.probabilities[name] += float(highest[best == index].sum())

    @property
    def total(self) -> int:
        """Images counted."""
        return self.images.total()

    def table(self) -> Table:
        """The predicted classes as a table, most frequent first."""
        table = Table("class", show_edge=False)
        for column in ("images", "share", "mean probability"):
            table.add_column(column, justify="right")
        for name, images in self.images.most_common():
            shares = images / self.total, self.probabilities[name] / images
            table.add_row(Text(name), f"{images:,}", *(f"{share:.3f}" for share in shares))
        return table


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The result of a prediction: counts of the rows in `output`, and what was skipped."""

    tally: Tally
    found: FoundFiles
    skipped: Sequence[Unreadable]
    output: Path
    explained: Path | None = None


def predict_files(config: Config, request: Predict, folder: Path) -> Classified:
    """Classifies the requested images and writes one row for each readable image.

    Raises:
        RequestError: there is no such file or model, it is named twice, or a file would be both
            read and replaced.
        PipelineError: none of the files can be read.
    """
    if request.images is None:
        raise RequestError(
            "images: say what to classify, images=<file, folder, archive or pattern>"
        )
    if request.model_uri and config.run_id:
        one = f"model_uri={request.model_uri} and run_id={config.run_id}"
        raise RequestError(f"{one}: give one of them")
    run = None if config.run_id is None else _trained(config.run_id, config)
    path_column = None if run is None else run.config.dataset.get("path_column")
    found, opened = find_images(request.images, path_column=path_column)
    output = Path(request.output)
    explained = output.with_suffix(".explained.png") if request.explain else None
    overview = Path(request.contact_sheet) if request.contact_sheet else None
    written = [output, *filter(None, (explained, overview))]
    for path in written:
        require_writable(path.parent, holds="the results of predict")
    names = {path.name for path in written}
    read = [user_path(request.images), *(file for file in found.files if file.name in names)]
    require_others(written, read, f"images={request.images}")
    with native_messages_to(folder / "tensorflow.log"):
        model = _load(config, request.model_uri if run is None else run.model_uri)
    sheets = _sheets(model, request, explained, opened)
    skipped: list[Unreadable] = []
    decoders = native_messages_to(folder / "decoders.log")
    with decoders as stderr, _progress(found, skipped, stderr) as listener:
        blocks = read_blocks(
            found.files,
            model.image_shape,
            at_once=images_at_once(model.image_shape, request.batch_size),
            listener=listener,
            fit=model.fit,
            opened=opened,
        )
        tally = _write(blocks, classifier(model, request.invert), output, [*sheets.values()])
    with native_messages_to(folder / "decoders.log"):  # the pictures are decoded again
        for path, sheet in sheets.items():
            sheet.save(path)
    return Classified(tally=tally, found=found, skipped=skipped, output=output, explained=explained)


def show(classified: Classified, request: Predict) -> None:
    """Prints the number of images per class, and the output file.

    Raises:
        PipelineError: a file could not be read.
    """
    tally, skipped, output = classified.tally, classified.skipped, classified.output
    standard_output().print(tally.table())
    if classified.explained:
        print(f"explained={classified.explained}")
    print(f"images={tally.total} skipped={len(skipped)} output={output}", flush=True)
    if skipped:
        unread = _unread_in_words(skipped, classified.found)
        raise PipelineError(f"{unread} cannot be read; the others are in {output}")


def _unread_in_words(skipped: Sequence[Unreadable], found: FoundFiles) -> str:
    folders = len(found.unreadable)
    files = f"{len(skipped) - folders} of {len(found.files)} files"
    if not folders:
        return files
    return f"{files} and {counted(folders, 'folder', 'folders')}"


def _write(
    blocks: Iterator[Block], classify: Classify, output: Path, sheets: Sequence[Sheet]
) -> Tally:
    tally = Tally()
    with replacing(output) as partial, WRITERS[output.suffix.lower()](partial) as write:
        try:
            for block in blocks:
                predicted = classify(block)
                write(predicted)
                tally.add(predicted)
                for sheet in sheets:
                    sheet.add(predicted, block.images)
        except KeyboardInterrupt as stop:
            stop.args = (f"{tally.total:,} images were classified, {output} is not written",)
            raise
        if not tally.total:
            raise PipelineError(f"none of the files can be read; {output} is not written")
    return tally


def classifier(model: LoadedModel, invert: str) -> Classify:
    """Makes a function that predicts blocks; `invert` is auto, yes or no."""
    from pipeline.training.predictor import predictor

    forward = predictor(model.model)

    def classify(block: Block) -> PredictedBlock:
        inverted = _to_invert(block.images, invert, model.dark_border)
        images = with_inverted(block.images, inverted)
        return PredictedBlock(
            files=block.files,
            indices=block.indices,
            probabilities=forward(images),
            inverted=inverted,
            class_names=model.class_names,
        )

    return classify


def _to_invert(images: Array, invert: str, trained_dark: float | None) -> Array:
    if invert == "auto":
        return to_invert(images, trained_dark)
    return np.full(len(images), invert == "yes")


def _trained(run_id: str, config: Config) -> RecordedRun:
    from pipeline.tracking.runs import find_trained

    return find_trained(run_id, config)


def _load(config: Config, uri: str | None) -> LoadedModel:
    from pipeline.tracking.models import load_model
    from pipeline.tracking.values import champion_uri

    model = load_model(uri or champion_uri(config.choices.dataset), config.tracking)
    if model.image_shape[2] not in MODES:
        raise RequestError(
            f"model_uri={model.uri}: takes {model.image_shape[2]} channels; pictures have 1 or 3"
        )
    return model


def _sheets(
    model: LoadedModel, request: Predict, explained: Path | None, opened: Opener
) -> dict[Path, Sheet]:
    """The pages to fill and draw, by the files that they go to."""
    from pipeline.verbs.predict.sheet import Sheet

    made = partial(Sheet, title=model.uri, shape=model.image_shape, opened=opened)
    sheets = {}
    if request.contact_sheet:
        sheets[Path(request.contact_sheet)] = made()
    if explained:
        from pipeline.training.explain import explain

        sheets[explained] = made(explain=partial(explain, model.model))
    return sheets


@contextmanager
def _progress(
    found: FoundFiles, skipped: list[Unreadable], stderr: TextIO
) -> Iterator[Callable[[Block], None]]:
    """Shows a bar on a terminal and a line per unreadable file; adds these files to `skipped`."""
    console = plain_console(stderr)
    after = "{task.fields[percent]:>3} %  {task.fields[images]:,} images"
    with progress_bar(console, after=after) as bar:
        total, done, images = len(found.files), 0.0, 0
        task = bar.add_task("", total=total, percent="0", images=0)

        def skip(unreadable: tuple[Unreadable, ...]) -> None:
            for one in unreadable:
                line = as_line(f"skipped {as_text(one.file)}: {one.reason}")
                console.print(line, soft_wrap=True)
            skipped.extend(unreadable)

        def listener(block: Block) -> None:
            nonlocal done, images
            done, images = done + block.files_done, images + len(block)
            percent = in_percent(done / total, 0)
            bar.update(task, completed=done, percent=percent, images=images)
            skip(block.unreadable)

        if found.rest:
            console.print(found.rest, soft_wrap=True)
        skip(found.unreadable)
        yield listener
