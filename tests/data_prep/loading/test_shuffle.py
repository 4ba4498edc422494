"""Orders of an epoch: permutations that are computed, not stored, and treat all samples and classes alike."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.common.counter_rng import Purpose, key, mix, uniform
from data_prep.loading.shuffle import BlockShuffle, FullShuffle, Order, Sequential, permute
from tests.helpers.memory import peak_kilobytes


def shuffles(samples: int, seed: int = 0, epoch: int = 0) -> dict[str, Order]:
    return {
        "full": FullShuffle(samples, seed, epoch),
        "blocks": BlockShuffle(samples, seed, epoch, block=8, window=48, lanes=4),
        "one lane": BlockShuffle(samples, seed, epoch, block=5, window=7, lanes=1),
        "many lanes": BlockShuffle(samples, seed, epoch, block=64, window=1024, lanes=32),
    }


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 7, 16, 63, 64, 65, 100, 1000, 4097])
def test_orders_are_permutations(samples: int) -> None:
    for epoch in range(3):
        for name, order in shuffles(samples, 3, epoch).items():
            assert np.array_equal(np.sort(order.at(np.arange(samples))), np.arange(samples)), name


def test_any_part_of_an_order_can_be_computed_alone() -> None:
    for name, order in shuffles(1000).items():
        whole = order.at(np.arange(1000))
        for part in (np.arange(500, 600), np.arange(3, 1000, 7), np.array([999, 0, 5])):
            assert np.array_equal(order.at(part), whole[part]), name


def test_orders_depend_on_seed_and_epoch() -> None:
    for name, order in shuffles(2000).items():
        first = order.at(np.arange(2000))
        for other in (shuffles(2000, seed=1)[name], shuffles(2000, epoch=1)[name]):
            assert np.mean(other.at(np.arange(2000)) == first) < 0.01, name
        assert np.array_equal(first, shuffles(2000)[name].at(np.arange(2000)))


@pytest.mark.slow
def test_every_sample_is_equally_likely_at_every_place() -> None:
    samples, epochs = 30, 6000
    for name in ("full", "blocks", "one lane"):
        counts = np.zeros((samples, samples))
        for epoch in range(epochs):
            counts[np.arange(samples), shuffles(samples, epoch=epoch)[name].at(np.arange(samples))] += 1
        expected = epochs / samples
        statistic = ((counts - expected) ** 2 / expected).sum()
        freedom = (samples - 1) ** 2
        assert abs(statistic - freedom) < 6 * np.sqrt(2 * freedom), name


def test_neighbours_are_independent_in_a_full_shuffle() -> None:
    order = FullShuffle(100_000, 0, 0).at(np.arange(100_000)).astype(float)
    for lag in (1, 2, 316, 317):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.015


@pytest.mark.parametrize("name", ["full", "many lanes"])
def test_batches_are_uniform_over_classes(name: str) -> None:
    """As uniform as independent draws: class counts of batches have the variance of a draw without replacement."""
    samples, classes, batch = 100_000, 10, 250
    labels = np.random.default_rng(0).permutation(samples) % classes  # as shards are written
    found = labels[shuffles(samples)[name].at(np.arange(samples))].reshape(-1, batch)
    counts = np.stack([(found == label).sum(1) for label in range(classes)])
    statistic = ((counts - batch / classes) ** 2 / (batch / classes)).sum()
    freedom = counts.shape[1] * (classes - 1)
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_full_shuffle_is_uniform_over_classes_that_are_stored_one_after_the_other() -> None:
    labels = np.repeat(np.arange(10), 10_000)
    found = labels[FullShuffle(100_000, 0, 0).at(np.arange(100_000))].reshape(-1, 250)
    counts = np.stack([(found == label).sum(1) for label in range(10)])
    statistic = ((counts - 25) ** 2 / 25).sum()
    assert abs(statistic - 3600) < 5 * np.sqrt(2 * 3600)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_workers_read_blocks_of_their_own(world_size: int) -> None:
    samples, block = 64_000, 64
    order = BlockShuffle(samples, 0, 0, block=block, window=1024, lanes=32)
    readers: dict[int, set[int]] = {}
    start = int(key(0, 0, Purpose.OFFSET)[0] % np.uint64(samples))
    for rank in range(world_size):
        seen = order.at(np.arange(rank, samples, world_size))
        for number in np.unique((seen - start) % samples // block).tolist():
            readers.setdefault(number, set()).add(rank)
    shared = sum(len(ranks) > 1 for ranks in readers.values())
    assert len(readers) == samples // block and shared <= 32


def test_a_window_is_read_from_few_blocks_and_holds_what_it_says() -> None:
    order = BlockShuffle(64_000, 0, 5, block=64, window=1024, lanes=8)
    for position in (0, 1, 8 * 1024 + 3, 63_999):
        lane, number = order.window_at(position)
        runs = order.blocks(lane, number)
        places = np.arange(lane + 8 * 1024 * number, min(lane + 8 * 1024 * (number + 1), 64_000), 8)
        assert sorted(order.at(places).tolist()) == [sample for first, end in runs for sample in range(first, end)]
        assert len(runs) <= 1024 // 64 + 3 and order.at(np.array([position]))[0] in order.at(places)
    assert order.blocks(0, 8) == []


def test_one_hundred_million_samples_take_no_memory() -> None:
    def look_up() -> None:
        for order in shuffles(100_000_000).values():
            for first in (0, 54_321_000, 99_999_744):
                found = order.at(np.arange(first, first + 256))
                assert len(set(found.tolist())) == 256 and found.min() >= 0 and found.max() < 100_000_000

    assert peak_kilobytes(look_up)[1] < 20_000


def test_sequential_order_is_as_stored() -> None:
    assert Sequential().at(np.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_permutations_of_many_sizes_at_once_are_those_of_each() -> None:
    sizes = np.array([5, 9, 1, 64])
    keys = key(0, np.arange(4))
    together = permute(np.zeros(4, np.int64), sizes, keys)
    assert together.tolist() == [int(permute(np.array([0]), int(n), keys[i : i + 1])[0]) for i, n in enumerate(sizes)]


def test_mix_is_the_finalizer_of_splitmix64() -> None:
    # The first outputs of the published generator, started at 0.
    state, golden = 0, 0x9E3779B97F4A7C15
    found = [int(mix(np.array([(state + n * golden) % 2**64], np.uint64))[0]) for n in range(3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_uniform_numbers_are_uniform_and_belong_to_their_names() -> None:
    numbers = uniform(40, 7, 3, Purpose.AUGMENTATION, np.arange(5000))
    assert numbers.shape == (5000, 40) and numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.003 and abs(numbers.std() - 12**-0.5) < 0.003
    assert abs(np.corrcoef(numbers.T) - np.eye(40)).max() < 0.08
    assert np.array_equal(uniform(40, 7, 3, Purpose.AUGMENTATION, np.array([17]))[0], numbers[17])
    for other in ((8, 3, Purpose.AUGMENTATION), (7, 4, Purpose.AUGMENTATION), (7, 3, Purpose.ORDER)):
        assert not np.any(uniform(40, *other, np.arange(5000)) == numbers)
