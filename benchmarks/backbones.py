"""Compares the features of the EfficientNet-Lites with those of the original networks in PyTorch.

    pip install efficientnet_lite_pytorch  # the original networks; extras bench and pretrained
    python -m benchmarks.backbones

Both get the same photo-like noise at the size that the network was trained on. For each variant,
the largest difference of the 1,280 features of each picture is printed; it ends with exit code 1 if
one exceeds 1e-4.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from pipeline.api import compose
from pipeline.config.builders import build
from pipeline.data.values import Array
from pipeline.training import pretrained

SIZES = {0: 224, 1: 240, 2: 260}  # pixels on which each variant was trained
LARGEST = 1e-4


def main() -> None:
    """Reads the command line, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=8)
    count = parser.parse_args().pictures
    far = False
    for variant, size in SIZES.items():
        images = pictures(size, count)
        ours, theirs = our_features(variant, images), original_features(variant, images)
        difference = float(np.abs(ours - theirs).max())
        print(f"efficientnet_lite{variant}: {difference:.1e} of up to {theirs.max():.2f}")
        far |= difference > LARGEST
    sys.exit(int(far))


def pictures(size: int, count: int) -> Array:
    """Coloured noise at several scales, u8[count,size,size,3]; always the same."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        coarse = rng.integers(0, 256, (4 + 8 * number, 4 + 8 * number, 3), np.uint8)
        made.append(np.asarray(Image.fromarray(coarse).resize((size, size))))
    return np.stack(made)


def our_features(variant: int, images: Array) -> Array:
    """The features f32[N,1280] of our network with the published weights."""
    leaf = compose(f"model=efficientnet_lite{variant}", f"model.size={images.shape[1]}").model
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    outputs = build(leaf, keras.layers.Rescaling(1 / 255)(inputs), 2)
    model = keras.Model(inputs, outputs)
    pretrained.prepare_backbone(model, leaf)
    features = keras.Model(inputs, model.get_layer(pretrained.FEATURES).output)
    return np.array(features(images, training=False))


def original_features(variant: int, images: Array) -> Array:
    """The features f32[N,1280] of the original network with the same file of weights."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    published = pretrained.IMAGENET[variant]
    weights = Path(str(import_module(published.package).__file__)).parent / published.file
    network = EfficientNet.from_name(f"efficientnet-lite{variant}")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    scaled = (images.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
    with torch.no_grad():
        features: Array = network.extract_features(torch.from_numpy(scaled)).mean((2, 3)).numpy()
    return features


if __name__ == "__main__":
    main()
