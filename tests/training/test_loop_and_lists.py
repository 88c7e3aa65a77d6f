"""Training: resumed it ends bit by bit as unbroken, and it stops where it cannot go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file
from small_lists import TRAINING, lists, threes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from locore.reranking import ListwiseReranker, Shortlist, pairwise
from locore.training import loop
from locore.training.init import start_at_share, start_queries_and_keys
from locore.training.lists import Sampling, _dropped, fit_reranker
from locore.training.loop import Training


def model() -> ListwiseReranker:
    torch.manual_seed(0)
    settings = {"width": 32, "depth": 1, "heads": 2}
    return ListwiseReranker("mamba", 12, 20, max_positions=64, settings=settings, dropout=0.1)


def batch(drawn, step, size, seed):
    (whole,) = drawn.parts(step, size, seed, torch.device("cpu"), 1)
    return whole


class Killed(Exception):
    pass


def fit(folder, training=TRAINING, killed_after=None):
    folder.mkdir(exist_ok=True)
    count = 0

    def validate():
        nonlocal count
        count += 1
        if count == killed_after:
            raise Killed
        return {"mAP@R": float(count)}

    trained = model()
    fit_reranker(trained, lists(), training, validate, folder, seed=3)
    return trained.state_dict()


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resumed_training_ends_bitwise_as_unbroken(tmp_path, average):
    training = replace(TRAINING, ema_decay=average)
    unbroken = fit(tmp_path / "unbroken", training)
    with pytest.raises(Killed):
        fit(tmp_path / "broken", training, killed_after=2)
    resumed = fit(tmp_path / "broken", training)
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())


def test_between_validations_there_are_checkpoints_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    training, write, written = replace(TRAINING, validate_every=6), loop.saved.save, []

    def killed_at_the_third(*arguments):
        write(*arguments)
        written.append(arguments)
        if len(written) == 3:
            raise Killed

    unbroken = fit(tmp_path / "unbroken", training)
    with monkeypatch.context() as patch:
        patch.setattr(loop.saved, "save", killed_at_the_third)
        with pytest.raises(Killed):
            fit(tmp_path / "broken", training)
    assert written[-1][3]["step"] == 3 and not written[-1][3]["history"]["validation"]
    resumed = fit(tmp_path / "broken", training)
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())


def test_the_average_of_the_weights_is_what_its_formula_says(tmp_path):
    steady = replace(TRAINING, schedule="constant", validate_every=1)
    first, second, third = (fit(tmp_path / f"{n}", replace(steady, steps=n)) for n in (1, 2, 3))
    averaged = fit(tmp_path / "averaged", replace(steady, steps=3, ema_decay=0.75))
    for name, value in averaged.items():
        expected = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * third[name]
        torch.testing.assert_close(value, expected)


def test_the_weights_that_are_kept_are_those_of_the_best_monitored_metric(tmp_path):
    steady = replace(TRAINING, schedule="constant", steps=3, validate_every=1)
    first, third = (fit(tmp_path / f"{n}", replace(steady, steps=n)) for n in (1, 3))
    for monitor, expected in (("R@1", first), ("mAP@R", third)):
        rising = iter(range(3))

        def validate(rising=rising):
            count = float(next(rising))
            return {"mAP@R": count, "R@1": -count}

        trained = model()
        fit_reranker(trained, lists(), replace(steady, monitor=monitor), validate, tmp_path / monitor, seed=3)
        assert all(torch.equal(value, expected[name]) for name, value in trained.state_dict().items())


def test_it_ends_when_validation_gains_nothing_and_does_not_go_on_later(tmp_path):
    settings = replace(TRAINING, schedule="constant", steps=9, validate_every=1, patience=2, min_gain=0.5)
    asked = iter([10.0, 10.4, 10.6, 10.9, 11.0, 99.0])  # 10.6 gains 0.6 over 10.0; then 0.3 and 0.4 gain nothing

    def train():
        return fit_reranker(model(), lists(), settings, lambda: {"mAP@R": next(asked)}, tmp_path, seed=3)

    state = train()
    assert [point["step"] for point in state["history"]["validation"]] == [1, 2, 3, 4, 5] and state["best"] == 11.0
    assert train()["history"] == state["history"]
    assert settings.stalled([1, 1, 1]) and not replace(settings, patience=0).stalled([1, 1, 1])


def test_training_changes_the_weights_and_accumulation_does_not_matter(tmp_path):
    start, whole = model().state_dict(), fit(tmp_path / "whole", replace(TRAINING, steps=1))
    assert any(not torch.equal(start[name], value) for name, value in whole.items())
    once = ListwiseReranker("mamba", 12, 20, max_positions=64, settings={"width": 32, "depth": 1, "heads": 2})
    gradients = []
    for parts in (1, 2):
        once.load_state_dict(start)
        once.zero_grad()
        cut = list(lists().parts(0, 4, 3, torch.device("cpu"), parts))
        assert len(cut) == parts
        for part, part_labels in cut:
            (ListwiseReranker.loss(once(part), part_labels) / parts).backward()
        gradients.append(once.head.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_image_asks_once_an_epoch_and_candidates_are_shuffled():
    table = lists()
    numbered = replace(table.descriptors, weight=torch.arange(30.0)[:, None].expand(-1, 4))
    table = replace(table, descriptors=numbered)
    asked, orders = [], []
    for step in range(6):
        shortlist, labels = batch(table, step, 5, 0)
        rows = shortlist.query.weight[:, 0].long().numpy()
        candidates = shortlist.candidates.weight[..., 0].long().numpy()
        asked += rows.tolist()
        assert (np.sort(candidates) == np.sort(table.neighbours[rows])).all()
        assert (labels.numpy() == threes(rows, candidates)).all()
        orders.append((candidates != table.neighbours[rows]).any())
    assert sorted(asked) == list(range(30)) and all(orders)


@pytest.mark.parametrize(
    ("sampling", "positives"),
    [
        (Sampling(), range(0, 7)),
        (Sampling(min_positives=3), range(3, 7)),
        (Sampling(max_positives=1), range(0, 2)),
        (Sampling(min_positives=2, max_positives=2), range(2, 3)),
        (Sampling(min_positives=9), range(6, 7)),  # there are only so many
        (Sampling(max_positives=0), range(2, 3)),  # and only so many others
    ],
)
def test_lists_are_drawn_with_as_many_positives_as_asked(sampling, positives):
    random = np.random.default_rng(0)
    many = sampling.max_positives == 0
    right = np.array([True] * 6 + [False] * (6 if many else 30))
    seen, counts = set(), set()
    for _ in range(300):
        places = sampling.draw(right, 8, random)
        assert len(places) == len(set(places)) == 8
        counts.add(int(right[places].sum()))
        seen |= set(places.tolist())
    assert counts <= set(positives) and seen >= set(np.flatnonzero(~right).tolist())


def test_lists_with_hard_negatives_are_the_nearest_that_are_left():
    """However many of the nearest are right, a list has wrong ones, and they are the nearest wrong ones."""
    right = np.array([True] * 30 + [False, True, False, False, True, False, False, False, False, False])
    random, counts = np.random.default_rng(0), set()
    for _ in range(200):
        places = Sampling(hard_negatives=True, shuffle=False).draw(right, 8, random)
        positives = places[right[places]]
        counts.add(len(positives))
        assert len(places) == 8 and (np.diff(places) > 0).all()
        assert places[~right[places]].tolist() == np.flatnonzero(~right)[: 8 - len(positives)].tolist()
    assert counts == {1, 2, 3, 4}
    few = {int(right[Sampling(hard_negatives=True, max_positives=2).draw(right, 8, random)].sum()) for _ in range(50)}
    assert few == {1, 2}
    assert right[Sampling(hard_negatives=True).draw(np.ones(9, dtype=bool), 8, random)].all()  # there are no others
    assert len(Sampling(hard_negatives=True).draw(np.zeros(9, dtype=bool), 8, random)) == 8


def test_only_images_with_enough_positives_ask_and_pairs_are_one_of_each():
    sampling = Sampling(min_positives=1, max_positives=1, query_positives=2)
    table = replace(lists(candidates=8), candidates=2, sampling=sampling)
    rows = np.arange(30)
    right = threes(rows, table.neighbours).sum(1)
    assert table.asking.tolist() == rows[right >= 2].tolist() and 0 < len(table.asking) < 30
    for step in range(4):
        assert batch(table, step, 6, 0)[1].sum(1).tolist() == [1] * 6
    with pytest.raises(ValueError, match=r"No image has 3 positives .* lower Sampling.query_positives"):
        _ = replace(table, sampling=Sampling(query_positives=3)).asking


def test_a_head_starts_at_the_share_of_right_candidates_in_its_lists():
    drawn = lists(images=120, candidates=30)
    batches = [batch(drawn, step, 8, 0)[1] for step in range(60)]
    share = drawn.share_of_right(seed=0)
    assert share == pytest.approx(float(torch.cat(batches).float().mean()), abs=0.01)
    model = ListwiseReranker("query_attention", 12, 20, 999, residual=20.0)
    start_at_share(model.head.bias, share)
    shortlist, _ = batch(drawn, 0, 4, 0)
    shortlist = replace(shortlist, similarities=torch.full_like(shortlist.similarities, 0.3))
    torch.testing.assert_close(model(shortlist).softmax(-1)[..., 1], torch.full((4, 31, 6), share))


def test_lists_that_are_not_shuffled_keep_the_order_of_the_neighbours():
    random, right = np.random.default_rng(0), np.arange(12) % 3 == 0
    places = [Sampling(shuffle=False, min_positives=2).draw(right, 8, random) for _ in range(50)]
    assert all((np.diff(each) > 0).all() for each in places) and len({tuple(each) for each in places}) > 10
    assert any((np.diff(Sampling().draw(right, 8, random)) < 0).any() for _ in range(5))


def test_token_dropout_masks_about_that_share_and_never_changes_the_lists():
    torch.manual_seed(0)
    descriptors = Shortlist.random(50, 1, 40, 4, 4).query
    kept = _dropped(descriptors, 0.3)
    assert 0.65 < float(kept.mask.float().mean()) < 0.75 and bool(descriptors.mask.all())
    assert torch.equal(kept.local, descriptors.local)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_then_follows_its_schedule(schedule):
    training = Training(steps=100, warmup_steps=10, schedule=schedule, learning_rate=1.0)
    assert training.rate(0) == pytest.approx(0.1) and training.rate(10) == pytest.approx(1.0)
    assert training.rate(55) == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5}[schedule])


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    poisoned = lists()
    poisoned.descriptors.local[0] = float("nan")
    with pytest.raises(ValueError, match=r"lower Training\.learning_rate"):
        fit_reranker(model(), poisoned, replace(TRAINING, batch_size=30), lambda: {"mAP@R": 0.0}, tmp_path, seed=0)


@pytest.mark.parametrize("damage", ["cut", "other model"])
def test_a_damaged_checkpoint_is_reported(tmp_path, damage):
    fit(tmp_path)
    last = tmp_path / "last.safetensors"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:1000])
        other = model()
    else:
        other = ListwiseReranker("rwkv", 12, 20, max_positions=64, settings={"width": 32, "depth": 1, "heads": 2})
    with pytest.raises(ValueError, match="damaged or belongs to another model"):
        fit_reranker(other, lists(), TRAINING, lambda: {"mAP@R": 0.0}, tmp_path, seed=3)


def test_wrong_options_are_reported():
    for options, words in (
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"mixed_precision": "fp8"}, "Known: no, bf16"),
        ({"batch_size": 5, "grad_accumulation_steps": 2}, "equal parts"),
        ({"steps": 0}, "at least 1"),
        ({"grad_accumulation_steps": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Training(**options)
    for options, words in (
        ({"min_positives": 3, "max_positives": 1}, "less than"),
        ({"token_dropout": 1.0}, "must be in"),
    ):
        with pytest.raises(ValueError, match=words):
            Sampling(**options)
    assert Sampling(depth=50).sizes(24) == (24, 50) and Sampling(candidates=10).sizes(24) == (10, 10)
    with pytest.raises(ValueError, match="less than the 24 candidates"):
        Sampling(depth=9).sizes(24)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", ["ames", "rrt", "r2former", "longformer", "list_attention"])
def test_queries_and_keys_start_equal_or_not(name, equal):
    """By what they compute: equal ones give a token's own key the largest inner product with its query."""
    listwise = name in ("longformer", "list_attention")
    torch.manual_seed(0)
    made = ListwiseReranker(name, 24, 20) if listwise else pairwise.create(name, "mini", 24, 20, {})
    start_queries_and_keys(made, equal)
    projections = [
        (w[: len(w) // 3], w[len(w) // 3 : 2 * len(w) // 3])
        for key, w in made.state_dict().items()
        if key.endswith(("in_proj_weight", "qkv.weight"))
    ]
    state = made.state_dict()
    projections += [(w, state[key.replace("query", "key")]) for key, w in state.items() if key.endswith("query.weight")]
    assert len(projections) > 2
    for query, key in projections:
        tokens = torch.randn(50, query.shape[1])
        alike = (tokens @ query.T) @ (tokens @ key.T).T
        own = float((alike.argmax(1) == torch.arange(50)).double().mean())
        assert own == 1 if equal else own < 0.3
        assert float(query.var()) == pytest.approx(1 / query.shape[1], rel=0.1)


def test_what_has_no_attention_has_no_such_start():
    with pytest.raises(ValueError, match="has no query and key projections"):
        start_queries_and_keys(pairwise.create("cvnet", "mini", 24, 20, {}), True)


def test_epochs_say_how_many_steps_there_are(tmp_path):
    assert replace(TRAINING, epochs=2.5, batch_size=4).over(40).steps == 25
    assert TRAINING.over(40) is TRAINING
    with pytest.raises(ValueError, match=r"Training\.epochs = 0 must be above 0"):
        Training(epochs=0)


def test_without_validation_the_last_weights_are_kept(tmp_path):
    trained = model()
    state = fit_reranker(trained, lists(), replace(TRAINING, ema_decay=0.9), None, tmp_path, seed=3)
    assert state["best"] is None and state["history"]["validation"] == []
    average = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(value, average[f"average.module.{name}"]) for name, value in trained.state_dict().items())
    again = model()
    finished = fit_reranker(again, lists(), replace(TRAINING, ema_decay=0.9), None, tmp_path, seed=3)
    assert finished["step"] == TRAINING.steps
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_weights_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"start accelerate without {name}"):
        fit(tmp_path)


class Kept(GeneralTracker):
    name, requires_logging_directory, logged = "kept", False, []

    def __init__(self, run_name, **_):
        super().__init__()

    def start(self):
        pass

    tracker = None

    def store_init_configuration(self, values):
        self.logged.append(values)

    def log(self, values, step, **_):
        self.logged.append((step, values))


def test_scalars_go_to_every_tracker(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "kept", Kept)
    fit(tmp_path, replace(TRAINING, trackers=("kept",)))
    settings, *logged = Kept.logged
    assert settings["learning_rate"] == TRAINING.learning_rate
    assert [step for step, _ in logged] == list(range(TRAINING.steps))
    assert {"loss", "gradient_norm", "learning_rate"} <= logged[0][1].keys() and "validation/mAP@R" in logged[-1][1]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("loss")] == list(range(TRAINING.steps))
    for name, words in (("wandd", "did you mean 'wandb'"), ("wandb", "is not installed; install its package")):
        with pytest.raises(ValueError, match=words):
            Training(trackers=(name,))
