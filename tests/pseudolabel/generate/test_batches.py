from hypothesis import given
from hypothesis import strategies as st

from pseudolabel.generate.batches import grouped, in_shard, loaded_ahead


@given(st.lists(st.integers()), st.integers(1, 7))
def test_shards_cover_every_item_once(items, count):
    parts = [list(in_shard(items, f"{index}/{count}")) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.sampled_from("abc")), st.integers(1, 4), st.integers(1, 9))
def test_groups_hold_every_item_once_and_few_at_a_time(keys, size, window):
    taken = 0

    def counted():
        nonlocal taken
        for item in enumerate(keys):
            taken += 1
            yield item

    given_out = 0
    seen = []
    for group in grouped(counted(), key=lambda item: item[1], size=lambda key: size, window=window):
        assert taken - given_out <= max(window, size)
        given_out += len(group)
        assert len({key for _, key in group}) == 1
        assert len(group) <= size
        assert group == sorted(group)
        seen += group
    assert sorted(seen) == list(enumerate(keys))


def test_groups_as_documented():
    groups = list(grouped("aababb", key=str, size=lambda key: 2, window=4))
    assert groups == [["a", "a"], ["b", "b"], ["a"], ["b"]]


def test_loading_ahead_keeps_the_order_and_the_bound():
    started = []

    def load(item: int) -> int:
        started.append(item)
        return item * item

    loading = loaded_ahead(iter(range(100)), load, ahead=5)
    assert next(loading) == 0
    assert len(started) <= 7
    assert list(loading) == [item * item for item in range(1, 100)]
