"""register, renew, leases, workers, retire: who is there, and who keeps them alive."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import WorkerGone
from tests.contract.kit import entries, entry, numbered, open_claims, push, worker


async def test_a_lease_begins_with_its_first_worker_and_ends_with_its_last(store: Store) -> None:
    assert await store.leases() == {}
    await worker(store, "here.1")
    await worker(store, "here.2")
    assert list(await store.leases()) == ["here"]
    await store.retire("here.1")
    assert list(await store.leases()) == ["here"]
    await store.retire("here.2")
    assert await store.leases() == {}


async def test_renewing_moves_the_counter_of_that_lease_alone(store: Store) -> None:
    await worker(store, "here.1")
    await worker(store, "there.1")
    seen = [await store.leases()]
    for _ in range(3):
        assert await store.renew("here") is True
        seen.append(await store.leases())
    assert len({leases["here"] for leases in seen}) == 4
    assert len({leases["there"] for leases in seen}) == 1


async def test_the_counter_stands_still_while_nobody_renews(store: Store) -> None:
    hand = await worker(store, "here.1")
    before = await store.leases()
    await push(store, entry("a"))
    await hand.drain()
    await worker(store, "here.2")
    assert await store.leases() == before


async def test_an_unknown_lease_cannot_be_renewed(store: Store) -> None:
    assert await store.renew("nobody") is False
    assert await store.leases() == {}


async def test_a_lease_whose_workers_all_retired_cannot_be_renewed(store: Store) -> None:
    await worker(store, "here.1")
    await store.retire("here.1")
    assert await store.renew("here") is False


async def test_a_lease_whose_workers_were_all_given_up_cannot_be_renewed(store: Store) -> None:
    await worker(store, "dead.1")
    adopter = await worker(store, "here.1")
    await adopter.adopt("dead.1")
    assert await store.renew("dead") is False
    assert list(await store.leases()) == ["here"]


async def test_a_lease_with_claims_left_to_adopt_is_still_listed_but_not_renewed(store: Store) -> None:
    await push(store, *entries(numbered(4)))
    gone = await worker(store, "dead.1")
    await gone.claim(limit=2)
    await gone.claim(limit=2)
    adopter = await worker(store, "here.1")
    await adopter.adopt("dead.1", limit=1)
    assert sorted(await store.leases()) == ["dead", "here"]
    assert await store.workers("dead") == {"dead.1": [2]}
    assert await store.renew("dead") is False


async def test_a_lease_lives_on_while_one_of_its_workers_does(store: Store) -> None:
    await worker(store, "here.1")
    await worker(store, "here.2")
    adopter = await worker(store, "there.1")
    await adopter.adopt("here.1")
    assert await store.renew("here") is True
    assert await store.workers("here") == {"here.2": []}


async def test_the_workers_of_a_lease_are_listed_with_their_open_claims_in_order(store: Store) -> None:
    await push(store, *entries(numbered(20)))
    first, second, other = await worker(store, "here.1"), await worker(store, "here.2"), await worker(store, "there.1")
    for _ in range(12):
        await first.claim(limit=1)
    await other.claim(limit=1)
    assert await store.workers("here") == {"here.1": list(range(1, 13)), second.id: []}
    assert await store.workers("nobody") == {}


async def test_a_lease_id_may_hold_dots_and_is_not_a_prefix_of_another(store: Store) -> None:
    await worker(store, "host.a.1")
    await worker(store, "host.1")
    assert sorted(await store.leases()) == ["host", "host.a"]
    assert await store.workers("host.a") == {"host.a.1": []}


async def test_registering_again_changes_nothing(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await store.register(hand.id)
    assert await open_claims(store, hand.id) == [claim.id]
    assert (await store.exchange(hand.id, 1, [], ["q"], 5)).jobs == [b"a"]


async def test_a_retired_worker_is_forgotten(store: Store) -> None:
    await worker(store, "here.1")
    assert await store.retire("here.1") is True
    assert await store.workers("here") == {}
    with pytest.raises(WorkerGone):
        await store.exchange("here.1", 1, [], ["q"], 1)


async def test_a_worker_with_open_claims_does_not_retire(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await store.retire(hand.id) is False
    assert await hand.settle(claim.done()) == [True]
    assert await store.retire(hand.id) is True


async def test_an_unknown_worker_has_retired_already(store: Store) -> None:
    assert await store.retire("nobody.1") is True


async def test_a_lease_that_is_made_anew_shows_no_value_it_had_before(store: Store) -> None:
    """An observer that knew it would take it for one that stands still."""
    seen = []
    for round in range(3):
        await worker(store, f"here.{round}")
        seen.append((await store.leases())["here"])
        await store.retire(f"here.{round}")
    assert len(set(seen)) == 3
