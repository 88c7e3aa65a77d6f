"""Landmark extraction: scales, detectors, whitening, and the command that leaves AMES's and LOCORE's files."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from small_inputs import write_glyphs
from torch.nn import functional as F

from experiments import extract
from locore.datasets import benchmarks
from locore.datasets._images import FileImages
from locore.descriptors import Extractor, ames_files
from locore.descriptors.detectors import class_attention
from locore.descriptors.embedder import Embedder
from locore.descriptors.files import Files
from locore.descriptors.whitening import Whitening
from locore.reranking import Shortlist, pairwise, weights_file
from locore.reranking.reranker import describe_mismatch
from locore.training.embedder import Finetuning
from locore.training.loop import Training

TOP = Extractor(image_size=32, local_stage=3, local_features="top", top_k=3)
VIT = Extractor(model="vit_tiny_patch16_224", weights="random", image_size=64, local_features="top", top_k=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("images"), classes=12, images=4)


@pytest.fixture(scope="module")
def images(root):
    return benchmarks.create("folder", path=str(root)).gallery


def pictures(images, count=3):
    return [images.image(i) for i in range(count)]


def test_locals_of_all_scales_compete_and_globals_are_averaged(images):
    several = replace(TOP, scales=(1.0, 2.0)).describe(pictures(images))
    small, large = (
        replace(TOP, image_size=side, top_k=cells).describe(pictures(images)) for side, cells in ((32, 4), (64, 16))
    )
    weight, order = torch.cat([small.weight, large.weight], dim=1).float().sort(dim=1, descending=True)
    torch.testing.assert_close(several.weight.float(), weight[:, :3])
    assert torch.equal(several.scale, (order[:, :3] >= 4).long())
    mean = F.normalize((small.global_descriptor.float() + large.global_descriptor.float()) / 2, dim=-1)
    torch.testing.assert_close(several.global_descriptor.float(), mean, atol=1e-3, rtol=0)
    assert 0 < int(several.scale.sum()) < several.scale.numel()


def test_images_keep_their_proportions(tmp_path):
    random = np.random.default_rng(0)
    for name, (width, height) in {"wide": (128, 64), "tall": (40, 120), "square": (96, 96)}.items():
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    kept, names = replace(VIT, keep_aspect_ratio=True, top_k=8), ["wide.png", "tall.png", "square.png"]
    images = FileImages(tmp_path, names, np.zeros(3))
    inputs = kept._inputs(kept._embedder, [images.image(i) for i in range(3)])
    assert [tuple(each.shape[2:]) for (each,) in inputs] == [(32, 64), (64, 16), (64, 64)]  # whole patches of 16
    together = kept.describe([images.image(i) for i in range(3)])
    assert together.mask.sum(1).tolist() == [8, 4, 8]  # a narrow image has fewer cells, and the rest says so
    assert not together.local[1, 4:].any()
    for row in range(3):
        alone = kept.describe([images.image(row)])
        torch.testing.assert_close(alone.local[0], together.local[row])
    square = replace(VIT, top_k=8).describe([images.image(2)])
    torch.testing.assert_close(square.local[0], together.local[2])
    torch.testing.assert_close(square.global_descriptor[0], together.global_descriptor[2])
    # A query that is cut out of its image is as large as it is in the whole of it.
    cut = FileImages(tmp_path, names[:1], np.zeros(1), boxes=np.array([[32, 0, 64, 64]]))
    ((small,),) = kept._inputs(kept._embedder, [cut.image(0)])
    assert tuple(small.shape[2:]) == (32, 16)
    extracted = kept.extract(images)
    torch.testing.assert_close(extracted.local, together.local)


def test_a_transformers_sides_are_whole_patches_at_every_scale(images):
    (inputs,) = replace(VIT, scales=(0.7071, 1.0, 1.4142))._inputs(VIT._embedder, pictures(images))
    assert [tuple(each.shape[2:]) for each in inputs] == [(48, 48), (64, 64), (96, 96)]
    described = replace(VIT, scales=(0.7071, 1.0, 1.4142), top_k=20).describe(pictures(images))
    assert described.local.shape == (3, 20, 192) and set(described.scale.flatten().tolist()) == {0, 1, 2}


def test_the_class_tokens_attention_is_the_one_inside_the_last_layer(images):
    network = VIT._embedder.network
    batch = VIT._embedder.input(pictures(images))
    inside = []
    attention = network.blocks[-1].attn
    attention.fused_attn = False  # so that the matrix exists
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: inside.append(inputs[0]))
    with torch.inference_mode(), class_attention(network) as seen:
        network(batch)
    handle.remove()
    attention.fused_attn = True
    torch.testing.assert_close(seen.weights, inside[0][:, :, 0, 1:].mean(1))
    described = replace(VIT, detector="class").describe(pictures(images))
    torch.testing.assert_close(described.weight.float(), seen.weights.topk(4, dim=1).values, atol=1e-3, rtol=0)


def test_the_class_token_is_a_global_descriptor(images):
    described = replace(VIT, pooling="class").describe(pictures(images))
    with torch.inference_mode():
        tokens = VIT._embedder.network.forward_features(VIT._embedder.input(pictures(images)))
    torch.testing.assert_close(
        described.global_descriptor.float(), F.normalize(tokens[:, 0], dim=-1), atol=1e-3, rtol=0
    )


def test_weights_of_another_size_or_with_published_names_are_converted_as_timm_does(tmp_path):
    name = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(0)
    trained = timm.create_model(name, img_size=56)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    file = {"file": str(tmp_path / "model.safetensors")}
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, img_size=84, num_classes=0)
    extractor = Extractor(model=name, weights=str(tmp_path / "model.safetensors"), image_size=84, local_features="top")
    loaded = extractor.embedder().network.state_dict()
    assert loaded["pos_embed"].shape == (1, 36, 384)
    for key, value in expected.state_dict().items():
        assert torch.equal(loaded[key], value), key
    with pytest.raises(ValueError, match="do not belong to this model"):
        replace(extractor, model="vit_tiny_patch16_224", image_size=64).embedder()


@pytest.fixture(scope="module")
def detector(images, tmp_path_factory):
    """An attention trained for a few steps on a frozen network."""
    folder = tmp_path_factory.mktemp("detector")
    start = Extractor(image_size=32)
    settings = Finetuning(
        loss="normalised_softmax",
        dim=16,
        pooling="attention",
        freeze_backbone=True,
        layer_norm=False,
        images_per_class=2,
    )
    training = Training(steps=20, batch_size=8, warmup_steps=1, validate_every=20, learning_rate=1e-3)
    embedder, state = settings.fit(start.embedder(), images, training, folder, seed=0)
    embedder.save(folder / "embedder.safetensors")
    return folder / "embedder.safetensors", state["history"]["loss"]


def test_a_detector_is_trained_and_the_network_is_not(detector):
    path, losses = detector
    trained, start = Embedder.load(path), Extractor(image_size=32).embedder()
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, start.network.state_dict()[name])
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_trained_detector_weighs_the_cells(images, detector):
    described = Extractor(image_size=64, local_features="top", top_k=4, detector=str(detector[0])).describe(
        pictures(images)
    )
    embedder = Embedder.load(detector[0])
    with torch.inference_mode():
        _, maps = Extractor(image_size=64)._embedder.maps(Extractor(image_size=64)._embedder.input(pictures(images)))
        weights = embedder.pool.weights(maps).flatten(1).sort(dim=1, descending=True).values
    torch.testing.assert_close(described.weight.float(), weights[:, :4], atol=2e-3, rtol=2e-3)
    assert (weights.std(dim=1) > 0).all()


def test_whitening_is_scikit_learns():
    rows = np.random.default_rng(0).standard_normal((300, 12)) @ np.random.default_rng(1).standard_normal((12, 12))
    ours = Whitening.fit(rows, 5)(rows.astype(np.float32))
    theirs = PCA(5, whiten=True).fit_transform(rows)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-3)  # signs of components are free
    turned = Whitening.fit(rows, 5, whitened=False)(rows.astype(np.float32))
    expected = PCA(5).fit_transform(rows)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(turned), np.abs(expected), atol=1e-4)
    half = Whitening.fit(rows, 5)(rows.reshape(100, 3, 12).astype(np.float16))
    assert half.dtype == np.float16 and half.shape == (100, 3, 5)


def lines(root, *more):
    every = [
        "Data.benchmark = 'folder'",
        f"folder.path = '{root}'",
        "Extractor.image_size = 32",
        "Extractor.local_stage = 3",
        "Extractor.local_features = 'top'",
        "Extractor.top_k = 3",
        *more,
    ]
    return [part for line in every for part in ("--set", line)]


@pytest.fixture
def gin_file(tmp_path):
    (tmp_path / "nothing.gin").write_text("")
    return ["--gin", str(tmp_path / "nothing.gin")]


def test_the_command_leaves_files_that_are_read_again(root, images, tmp_path, gin_file, capsys, monkeypatch):
    out = tmp_path / "out"
    command = [*gin_file, *lines(root), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(
            ames_files, "write_joined", lambda *_: (_ for _ in ()).throw(OSError("no space left on the device"))
        )
        assert extract.main(command) == 2
    with monkeypatch.context() as patch:  # the parts are there, so nothing is described again
        patch.setattr(Extractor, "_describe", lambda *_: pytest.fail("described again"))
        assert extract.main(command) == 0
    assert extract.main(command) == 0 and "is finished" in capsys.readouterr().out
    assert sorted(path.suffix for path in out.iterdir() if path.name.startswith("gallery")) == [".f32", ".hdf5"]
    benchmark = benchmarks.create("folder", path=str(root))
    names = {
        f"{what}_{kind}": str(out / f"{what}_{kind}.{suffix}")
        for what in ("query", "gallery")
        for kind, suffix in (("global", "f32"), ("local", "hdf5"))
    }
    _, gallery = Files(**names, locals_per_image=3).tables(benchmark)
    expected = TOP.describe([images.image(i) for i in range(len(images))])
    found = gallery[torch.arange(len(images))]
    torch.testing.assert_close(found.global_descriptor, expected.global_descriptor.float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.local, expected.local, atol=2e-3, rtol=0)
    assert json.loads((out / "metrics.json").read_text())["images"] == {
        "query": len(benchmark.queries),
        "gallery": len(images),
        "train": len(benchmark.train),
    }
    (out / "gallery_local.hdf5").unlink()
    assert extract.main(command) == 2
    assert "gallery_local.hdf5' is gone" in capsys.readouterr().err
    (out / "metrics.json").unlink()
    assert extract.main(command) == 0
    torch.testing.assert_close(
        Files(**names, locals_per_image=3).tables(benchmark)[1][torch.arange(3)].local, found.local[:3]
    )


@pytest.mark.slow  # networks of 25 to 93 M parameters
@pytest.mark.parametrize(
    ("name", "count", "widths"),
    [
        ("dinov2", 50, {"global": 768, "local": 768}),
        ("dinov3", 50, {"global": 768, "local": 768}),
        ("perception_encoder", 49, {"global": 768, "local": 768}),
        ("siglip2", 49, {"global": 768, "local": 768}),
        ("resnet50", 50, {"global": 2048, "local": 1024}),
    ],
)
def test_the_files_of_models_build(name, count, widths, capsys):
    lines = ["Extractor.weights = 'random'"]
    if count == 50:  # at any size, so at a small one
        lines.append("Extractor.image_size = 224")
    arguments = ["--gin", f"gin/extract/{name}.gin", "--gin", "gin/data/roxford5k.gin", "--dry-run"]
    assert extract.main([*arguments, *(part for line in lines for part in ("--set", line))]) == 0
    printed = capsys.readouterr().out
    assert f"{count} locals" in printed and str(widths) in printed


def test_a_whitening_is_kept_and_used_for_other_images(root, tmp_path, gin_file, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    asked = lines(root, "Extraction.global_dim = 7", "Extraction.local_dim = 9")
    assert extract.main([*gin_file, *asked, "--out", str(one)]) == 0
    assert extract.main([*gin_file, *lines(root, f"Extraction.whitening = '{one}'"), "--out", str(other)]) == 0
    for folder in (one, other):
        with h5py.File(folder / "gallery_local.hdf5") as file:
            assert file["features"].shape == (24, 3, 5 + 9)
    assert (one / "gallery_global.f32").read_bytes() == (other / "gallery_global.f32").read_bytes()
    assert len((one / "gallery_global.f32").read_bytes()) == 24 * 7 * 4
    for line, words in (
        ("Extraction.global_dim = 5000", "must be in 1 to 1280"),
        ("Extraction.global_dim = 24", "24 images are too few"),
        (f"Extraction.whitening = '{tmp_path}'", "No whitening in"),
        (f"Extraction.whitening = '{one}'\nExtraction.local_dim = 3", "leave"),
        ("Extraction.whiten = False", "is PCA alone"),
        (f"Extraction.whitening = '{one}'\nExtractor.local_stage = 2", "these have"),
        ("Extractor.scales = (1.0, -1.0)", "positive"),
        ("Extractor.detector = 'class'", "leave Extractor.local_stage"),
        ("Extractor.detector = 'none.safetensors'", "There is no trained embedder"),
    ):
        assert extract.main([*gin_file, *lines(root, *line.split("\n")), "--out", str(tmp_path / "bad")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and words in error, error


@pytest.mark.parametrize("method", ["ames", "elvis"])
def test_bits_rank_as_the_descriptors_that_they_were_made_of(method, root, tmp_path, gin_file, capsys):
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 1, "heads": 2, "inner": 16} if method == "ames" else {"width": 16}
    model = pairwise.create(method, "mini", 112, 1280, {**settings, "bits": 64}).eval()
    weights_file.write(model, tmp_path / "model.safetensors", model.spec, None)
    plain, bits = tmp_path / "plain", tmp_path / "bits"
    asked = f"Extraction.bits = '{tmp_path / 'model.safetensors'}'"
    assert extract.main([*gin_file, *lines(root), "--out", str(plain)]) == 0
    assert extract.main([*gin_file, *lines(root, asked), "--out", str(bits)]) == 0
    scores = []
    for folder in (plain, bits):
        tables = [
            ames_files.Stored(
                ames_files.read_globals(folder / f"{name}_global.f32", count),
                ames_files.Locals(folder / f"{name}_local.hdf5", count),
            )
            for name, count in (("query", 24), ("gallery", 24))
        ]
        shortlist = Shortlist.gather(tables[0], torch.arange(3), tables[1], torch.arange(5).expand(3, 5))
        assert describe_mismatch(model, shortlist.candidates[0]) is None
        scores.append(model.rerank(shortlist).scores)
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)
    assert (bits / "gallery_local.hdf5").stat().st_size < (plain / "gallery_local.hdf5").stat().st_size / 2
    for bad, words in (
        (f"{asked}\nExtraction.local_dim = 9", "makes bits of local descriptors of width 112, and these have 9"),
        (f"Extraction.bits = '{tmp_path / 'none'}'", "There is no model at"),
    ):
        assert extract.main([*gin_file, *lines(root, *bad.split("\n")), "--out", str(tmp_path / "bad")]) == 2
        assert words in capsys.readouterr().err


def test_a_re_ranker_that_makes_no_bits_is_refused(root, tmp_path, gin_file, capsys):
    model = pairwise.create("elvis", "mini", 112, 1280, {"width": 16})
    weights_file.write(model, tmp_path / "model.safetensors", model.spec, None)
    asked = f"Extraction.bits = '{tmp_path / 'model.safetensors'}'"
    assert extract.main([*gin_file, *lines(root, asked), "--out", str(tmp_path / "bad")]) == 2
    assert "makes no bits of local descriptors" in capsys.readouterr().err
