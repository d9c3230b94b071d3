from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.config import Params, load_params
from atelier.errors import AtelierError
from atelier.evaluation import extractors
from atelier.evaluation.dinov2 import VisionTransformer
from atelier.evaluation.distances import MomentsAccumulator, frechet_distance
from atelier.evaluation.extractors import Classifier, ClassifierNetwork, Dinov2, Extractor, Inception, Lite0
from atelier.evaluation.weights import PUBLISHED, find_weights
from atelier.files import digest
from own_pictures import picture_array

PARAMS = """
datasets: [mnist, pokemon]
runs: {run: {dataset: mnist, model: cgan}}
ingest: {paths: {pokemon: nowhere}}
"""


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(PARAMS)
    return load_params(path)


@pytest.fixture(scope="module")
def lite0(params: Params) -> Lite0:
    return Lite0(find_weights("lite0", params, Path()))


class ImagesAlone(torch.utils.data.TensorDataset):
    """As torch-fidelity reads them: no tuples."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index)[0]


def pictures(first: int, count: int, channels: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    images = np.stack([picture_array(seed) for seed in range(first, first + count)])
    return images if channels == 3 else images[..., :1]


def test_auto_goes_by_labels_and_a_name_is_taken_once(params: Params) -> None:
    assert params.extractors("mnist") == ["classifier"]
    assert params.extractors("pokemon") == ["lite0"]
    evaluate = params.evaluate.model_copy(update={"extractors": ["auto", "inception", "lite0"]})
    several = params.model_copy(update={"evaluate": evaluate})
    assert several.extractors("mnist") == ["classifier", "inception", "lite0"]
    assert several.extractors("pokemon") == ["lite0", "inception"]


def test_lite0_is_the_published_network(lite0: Lite0) -> None:
    assert sum(parameter.numel() for parameter in lite0.network.parameters()) == 4_652_008
    images = pictures(0, 3)
    features, classes = lite0(images)
    assert features.shape == (3, 1280)
    assert classes is None
    # the features are what the network's own last layer reads its classes from
    pixels = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(), size=(224, 224), mode="bilinear", align_corners=False
    )
    with torch.no_grad():
        logits = lite0.network((pixels - 127) / 128)
        torch.testing.assert_close(lite0.network._fc(features), logits, rtol=1e-4, atol=1e-4)


def test_grey_is_three_equal_channels_and_a_batch_does_not_matter(lite0: Lite0) -> None:
    grey = pictures(0, 4, channels=1)
    together, _ = lite0(grey)
    torch.testing.assert_close(lite0(np.repeat(grey, 3, axis=-1))[0], together)
    torch.testing.assert_close(torch.cat([lite0(grey[i : i + 1])[0] for i in range(4)]), together, rtol=1e-4, atol=1e-4)


def test_altered_weights_are_refused(params: Params, tmp_path: Path) -> None:
    content = bytearray(find_weights("lite0", params, Path()).read_bytes())
    content[10_000_000] ^= 1
    (tmp_path / "lite0.pth").write_bytes(content)
    with pytest.raises(AtelierError, match=r"lite0\.pth: not the published weights of 'lite0'"):
        Lite0(tmp_path / "lite0.pth")


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception-v3 with random weights of the right shapes, under torch-fidelity's layout."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.manual_seed(0)
    # built without loading anything, which their constructor does not offer
    with pytest.MonkeyPatch.context() as patch:
        load: Callable[..., object] = lambda *arguments, **options: {}  # noqa: E731
        patch.setattr(theirs, "load_state_dict_from_url", load)
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048"])
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # as they are, activations would fade to nothing
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


def publish(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take these weights for the published ones."""
    known = replace(PUBLISHED[name], sha256=digest(path), bytes=path.stat().st_size)
    monkeypatch.setitem(PUBLISHED, name, known)


@pytest.fixture
def inception(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> Inception:
    publish("inception", random_inception, monkeypatch)
    return Inception(random_inception)


def test_fid_is_torch_fidelitys_through_the_same_network_on_the_same_images(
    inception: Inception, random_inception: Path
) -> None:
    from torch_fidelity import calculate_metrics

    ours, sets = [], []
    # torch-fidelity takes the root of eigenvalues that are zero but for rounding, 2037 of them for 12 images: sets far
    # apart, so that this stays below a millionth of the distance on every processor
    for images in (pictures(0, 12), 255 - pictures(100, 12) // 4):
        accumulator = MomentsAccumulator()
        accumulator.update(inception(images)[0])
        ours.append(accumulator.moments())
        sets.append(ImagesAlone(torch.from_numpy(images).permute(0, 3, 1, 2)))
    theirs = calculate_metrics(
        input1=sets[0],
        input2=sets[1],
        fid=True,
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(random_inception),
        batch_size=12,
    )
    assert frechet_distance(*ours) > 1e-3
    assert frechet_distance(*ours) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


@pytest.fixture
def dinov2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dinov2:
    """DINOv2 with two narrow blocks of random weights."""
    small = functools.partial(VisionTransformer, width=32, depth=2, heads=4)
    monkeypatch.setattr(extractors, "VisionTransformer", small)
    torch.manual_seed(0)
    network = small()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(network.state_dict(), tmp_path / "dinov2.pth")
    publish("dinov2", tmp_path / "dinov2.pth", monkeypatch)
    return Dinov2(tmp_path / "dinov2.pth")


def test_dinov2_sees_what_pillow_resizes_as_imagenet_is_normalised(dinov2: Dinov2) -> None:
    images = pictures(0, 3)
    resized = [
        Image.fromarray(image[..., channel].astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC)
        for image in images
        for channel in range(3)
    ]
    pixels = np.stack(resized).reshape(3, 3, 224, 224).clip(0, 255) / 255
    normalised = (pixels - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    with torch.no_grad():
        expected = dinov2.network(torch.from_numpy(normalised).float())
    features, classes = dinov2(images)
    assert classes is None
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_grey_values_that_happen_to_be_whole_give_the_features_of_the_image(
    lite0: Lite0, inception: Inception, dinov2: Dinov2
) -> None:
    images = pictures(0, 2, channels=1)
    classifier = Classifier(ClassifierNetwork(1, images.shape[1], 10), "")
    ours: list[Extractor] = [lite0, inception, dinov2, classifier]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    for extractor in ours:
        with torch.no_grad():
            whole, between = extractor.of_pixels(pixels), extractor.of_pixels(pixels * 0.999)
        torch.testing.assert_close(whole, extractor(images)[0], rtol=1e-4, atol=1e-4)
        assert not torch.equal(whole, between)  # nothing is rounded on the way
