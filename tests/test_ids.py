"""Job ids: unique, in the order they were made, and fresh in every process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs import clock
from fastjobs.ids import fresh_name, id_text, id_word, new_id, parse_id


def test_ids_are_unique() -> None:
    assert len({new_id() for _ in range(100_000)}) == 100_000


def test_ids_of_one_process_sort_in_the_order_they_were_made() -> None:
    made = [new_id() for _ in range(10_000)]
    assert made == sorted(made)


def test_an_id_is_a_uuid_of_version_7_that_holds_the_time() -> None:
    before = time.time()
    id = uuid.UUID(bytes=new_id())
    assert (id.version, id.variant) == (7, uuid.RFC_4122)
    assert int(before * 1000) <= id.int >> 80 <= int(time.time() * 1000)


def test_ids_stay_unique_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2e9, 1e9, 2e9, 1e9, 1e9])
    monkeypatch.setattr(clock, "wall", lambda: next(times))
    assert len({new_id() for _ in range(5)}) == 5


def test_ids_made_by_several_threads_are_unique() -> None:
    made: list[bytes] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        own = [new_id() for _ in range(5_000)]
        made.extend(own)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 40_000


FORKING = """
import os, sys
from fastjobs.ids import fresh_name, new_id
new_id()
for _ in range(4):
    if os.fork() == 0:
        break
    os.wait()  # one after the other: their lines must not mix
sys.stdout.write("".join(f"{new_id().hex()} {fresh_name()}\\n" for _ in range(2_000)))
sys.stdout.flush()
"""


def test_processes_forked_from_one_another_make_different_ids() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, timeout=30)
    ids, names = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert len(set(ids)) == len(set(names)) == 5 * 2_000
    # Not only the time differs: the part that tells one slot's started jobs from another's does too.
    assert len({id[16:] for id in ids}) == 5 * 2_000


def test_an_id_as_text_is_read_back_with_and_without_dashes() -> None:
    id = new_id()
    assert parse_id(id_text(id)) == parse_id(id.hex()) == parse_id(id_text(id).upper()) == id
    assert id_text(id) == str(uuid.UUID(bytes=id))


@given(st.text(max_size=40).filter(lambda text: len(text.strip("{}").replace("-", "")) != 32))
def test_text_that_is_no_id_is_refused_with_the_text_in_the_message(text: str) -> None:
    with pytest.raises(ValueError, match="is not a job id"):
        parse_id(text)


def test_the_word_of_an_id_is_never_zero_and_differs_from_job_to_job() -> None:
    words = {id_word(new_id()) for _ in range(1_000)}
    assert len(words) == 1_000
    assert 0 not in words
    assert max(words) < 2**64


def test_names_of_leases_are_fresh() -> None:
    assert len({fresh_name() for _ in range(10_000)}) == 10_000
