"""Job ↔ envelope, and what becomes of bytes that are none."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs.clock import wall
from fastjobs.envelope import (
    NewerEnvelope,
    Template,
    corrupt_job,
    decode_job,
    encode_job,
    header,
    routed_entry,
    with_header,
)
from fastjobs.errors import SerializationError
from fastjobs.model import ENVELOPE_VERSION, Entry, Failure, Job

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
moments = st.floats(0, 4e9)
failures = st.builds(Failure, moments, st.integers(0, 10**6), texts, texts, texts, texts, texts)
raws = (st.integers(0, 2**60) | texts | st.lists(texts, max_size=3)).map(
    lambda value: msgspec.Raw(msgspec.msgpack.encode(value))
)
jobs = st.builds(
    Job,
    st.just(ENVELOPE_VERSION),
    st.integers(0, 9),
    st.binary(min_size=16, max_size=16),
    texts,
    texts,
    st.binary(max_size=200),
    moments,
    st.integers(0, 10**6),
    st.integers(0, 1000),
    st.none() | st.integers(1, 10**6),
    st.integers(1, 1000),
    st.none() | st.floats(0.001, 1e9),
    st.none() | st.dictionaries(texts, raws, max_size=3),
    st.none() | st.lists(failures, max_size=3),
)


def sample(**fields: object) -> Job:
    job = Job(ENVELOPE_VERSION, 5, bytes(range(16)), "resize", "default", b'{"path":"a.png"}', 1.7e9, 3, 1)
    job.headers = {"retry": msgspec.Raw(msgspec.msgpack.encode((2.0, 60.0, 0.0)))}
    job.history = [Failure(1.7e9, 1, "failed", "ValueError", "no", "Traceback …", "w")]
    return msgspec.structs.replace(job, **fields)


@given(jobs)
def test_a_job_comes_back_from_its_envelope_unchanged(job: Job) -> None:
    assert decode_job(encode_job(job)) == job


@given(jobs)
def test_an_envelope_survives_being_decoded_and_encoded_byte_for_byte(job: Job) -> None:
    envelope = encode_job(job)
    assert encode_job(decode_job(envelope)) == envelope


def test_every_truncation_of_an_envelope_is_a_serialization_error() -> None:
    envelope = encode_job(sample())
    for length in range(len(envelope)):
        with pytest.raises(SerializationError):
            decode_job(envelope[:length])


def test_every_flip_of_a_bit_gives_a_job_or_a_serialization_error() -> None:
    envelope = encode_job(sample())
    for position in range(len(envelope)):
        for bit in range(8):
            damaged = bytearray(envelope)
            damaged[position] ^= 1 << bit
            _job_or_error(bytes(damaged))


def test_random_bytes_give_a_job_or_a_serialization_error() -> None:
    rng = random.Random(1)
    heads = (
        b"",
        b"\x9e",
        b"\x9e\x01",
        b"\x9e\x01\x05\xc4\x10",
        b"\xdc\x00\x10",
        b"\xdd\x00\x00\x00\x0e",
        b"\xde\xff\xff",
        b"\x91" * 50,
    )
    for round in range(20_000):
        _job_or_error(heads[round % len(heads)] + rng.randbytes(rng.randrange(80)))


def test_arrays_nested_without_end_are_a_serialization_error() -> None:
    for envelope in (b"\x91" * 200_000, b"\x9e\x01" + b"\x91" * 200_000, b"\x9e\x01\x05" + b"\x81" * 200_000):
        with pytest.raises(SerializationError):
            decode_job(envelope)


def _job_or_error(envelope: bytes) -> None:
    try:
        job = decode_job(envelope)
    except SerializationError:
        return
    assert isinstance(job, Job)
    encode_job(job)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 10},
        {"priority": -1},
        {"id": b"short"},
        {"id": b""},
        {"version": 0},
        {"version": -1},
        {"attempts": -1},
        {"attempts": 2**63},
        {"losses": -1},
        {"max_attempts": 0},
        {"max_attempts": -5},
        {"timeout_s": float("nan")},
        {"timeout_s": -1.0},
    ],
)
def test_numbers_that_no_job_can_have_are_a_serialization_error(fields: dict[str, object]) -> None:
    with pytest.raises(SerializationError) as caught:
        decode_job(encode_job(sample(**fields)))
    assert not isinstance(caught.value, NewerEnvelope)


def later(fields: list[object]) -> bytes:
    return msgspec.msgpack.encode(fields)


AS_NOW: list[object] = msgspec.to_builtins(sample(headers=None), builtin_types=(bytes,))


@pytest.mark.parametrize("version", [2, 3, 127, 128, 65_536])
@pytest.mark.parametrize(
    "tail",
    [AS_NOW[5:], [], ["other", {"fields": 1}], [*AS_NOW[5:], "more"], [*AS_NOW[5:], 1, 2, 3, 4, 5], [None] * 40],
    ids=["same", "fewer", "changed", "one-more", "five-more", "many"],
)
def test_an_envelope_of_a_later_version_is_told_from_a_corrupt_one(version: int, tail: list[object]) -> None:
    envelope = later([version, *AS_NOW[1:5], *tail])
    with pytest.raises(NewerEnvelope, match=str(version)):
        decode_job(envelope)
    entry = routed_entry(envelope, 5.0)
    assert (entry.id, entry.queue, entry.priority, entry.delay_s) == (bytes(range(16)), "default", 5, 5.0)
    assert entry.envelope == envelope


def test_fields_that_a_later_minor_version_adds_are_ignored() -> None:
    assert decode_job(later([*AS_NOW, "added"])).name == "resize"


def test_a_later_envelope_without_its_routing_cannot_be_put_back() -> None:
    for envelope in (later([2]), later([2, 5]), later([2, 5, "id", 7, "q"]), b"\x9e\x02", b"", b"\x9e\x02" + b"\x91" * 200_000):
        with pytest.raises(SerializationError):
            routed_entry(envelope, 5.0)


@pytest.mark.parametrize("routing", [[2, 12, bytes(16), "n", "q"], [2, -1, bytes(16), "n", "q"], [2, 5, b"short", "n", "q"]])
def test_a_later_envelope_whose_place_no_store_takes_cannot_be_put_back(routing: list[object]) -> None:
    with pytest.raises(SerializationError):
        routed_entry(later(routing), 5.0)


@given(st.binary(max_size=100))
def test_an_unreadable_envelope_is_kept_byte_for_byte(envelope: bytes) -> None:
    job = decode_job(encode_job(corrupt_job(envelope, 1.7e9)))
    assert job.payload == envelope
    assert job.name == "(unreadable)"


def test_a_header_is_read_back_as_what_it_is() -> None:
    job = sample(headers=None)
    marked = msgspec.structs.replace(job, headers=with_header(job, "snoozes", 7))
    assert header(decode_job(encode_job(marked)), "snoozes", int) == 7
    assert job.headers is None


def test_a_header_that_is_missing_or_of_another_kind_is_none() -> None:
    job = sample(headers=with_header(sample(headers=None), "snoozes", "seven"))
    assert header(job, "snoozes", int) is None
    assert header(job, "other", int) is None
    assert header(sample(headers=None), "other", int) is None
    assert header(sample(headers={"snoozes": msgspec.Raw(b"\xc1")}), "snoozes", int) is None


@given(jobs, st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 1 << 20]), st.none() | moments, moments)
def test_a_template_makes_the_entries_that_encoding_would(job: Job, size: int, run_at: float | None, delay_s: float) -> None:
    template = Template(job, run_at, delay_s)
    payload = b"x" * size
    found = [template.entry(payload) for _ in range(3)]  # whole, taken apart, and from its parts
    found.append(template.entry(b""))
    for entry, sent in zip(found, (payload, payload, payload, b""), strict=True):
        at = decode_job(entry.envelope).created_at
        envelope = encode_job(msgspec.structs.replace(job, id=entry.id, payload=sent, created_at=at))
        assert entry == Entry(entry.id, job.queue, job.priority, envelope, run_at, delay_s)
        assert abs(at - wall()) < 60
    assert len({entry.id for entry in found}) == 4


def test_many_entries_that_are_alike_are_made_when_asked_for() -> None:
    template = Template(sample(), 5.0, 0.0)
    likes = template.likes()
    entries = [template.entry(b"%d" % number) for number in range(4)]
    likes.envelopes += [entry.envelope for entry in entries]
    assert len(likes) == 4
    assert list(likes) == entries
    assert likes[1] == entries[1]
    assert likes[-2:] == entries[-2:]
    with pytest.raises(IndexError):
        likes[4]
