"""Lists the emoji of two npm packages for `experiment=emoji`, and checks a split of them.

    npm pack emoji-datasource-google emoji-datasource-twitter
    for f in emoji-datasource-*.tgz; do
      mkdir -p emoji/${f%-*}
      tar xzf $f -C emoji/${f%-*} --wildcards package/emoji.json 'package/img/*/64/*'
    done
    python -m benchmarks.emoji emoji            # writes emoji/emoji.csv
    python -m benchmarks.emoji emoji --check    # of the splits of experiment=emoji

The list has one row per picture: path, label (the category of Unicode), codepoint, vendor, and
`by_vendor`, a split that trains on Google's pictures and tests on Twitter's. Flags, components and
variants in skin tone are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

VENDORS = {"google": "train", "twitter": "test"}
LEFT_OUT = ("Flags", "Component")


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """One row per picture that both packages have, Google's first."""
    known = {vendor: folder / f"emoji-datasource-{vendor}" / "package" for vendor in VENDORS}
    emoji = json.loads((known["google"] / "emoji.json").read_text(encoding="utf-8"))
    for vendor, split in VENDORS.items():
        for one in emoji:
            if one["category"] in LEFT_OUT or not all(one[f"has_img_{name}"] for name in VENDORS):
                continue
            path = known[vendor] / "img" / vendor / "64" / one["image"]
            yield {
                "path": path.relative_to(folder).as_posix(),
                "label": one["category"],
                "codepoint": one["unified"],
                "vendor": vendor,
                "by_vendor": split,
            }


def write(folder: Path) -> Path:
    """Writes the list beside the packages."""
    listed = list(rows(folder))
    path = folder / "emoji.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, listed[0].keys())
        writer.writeheader()
        writer.writerows(listed)
    print(f"{path}: {len(listed):,} pictures, {len({row['label'] for row in listed})} classes")
    return path


def check(folder: Path, seeds: int = 5) -> None:
    """Loads the splits of the recipe and counts the codepoints that two of them share.

    Raises:
        SystemExit: there are some.
    """
    import pipeline

    list_ = os.path.relpath(folder / "emoji.csv")
    for seed in range(seeds):
        config = pipeline.compose(
            *("experiment=emoji", f"dataset.path={list_}"),
            *(f"dataset.seed={seed}", f"preprocess.seed={seed}"),
        )
        prepared = pipeline.load_data(config)
        codepoints = prepared.index.columns["codepoint"] if prepared.index else []
        splits = (prepared.train, prepared.val, prepared.test)
        train, val, test = ({codepoints[row] for row in split.rows} for split in splits)
        shared = len(train & val) + len(train & test) + len(val & test)
        sizes = ", ".join(f"{len(split):,}" for split in splits)
        print(f"seed {seed}: {sizes} pictures; {shared} codepoints in two splits")
        if shared:
            raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    check(given.folder) if given.check else write(given.folder)
