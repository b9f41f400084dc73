"""Stored bytes that are to be a job."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import strategies as st

from fastjobs.dead import _dead_job
from fastjobs.envelope import NewerEnvelope, corrupt_job, decode_job, encode_job, header, read_job, routed_entry
from fastjobs.errors import SerializationError
from fastjobs.execution import failure_of, outcome_of, set_aside
from fastjobs.model import DeadLetter, Failure, Job, Kind
from fastjobs.retry import DEFAULT_POLICY, after_failure, after_loss, after_unknown, carried_policy, is_suspect, requeued
from tests.fuzz.strategies import arrays, damaged, floats, huge, integers_64, noise, packed, texts
from tests.fuzz.surface import Surface, plain

_SAMPLE = Job(1, 5, bytes(range(16)), "resize", "default", b'{"path":"a.png"}', 1.7e9, 3, 1)
_FULL = msgspec.structs.replace(
    _SAMPLE,
    max_attempts=7,
    timeout_s=60.0,
    headers={
        "retry": msgspec.Raw(msgspec.msgpack.encode((2.0, 60.0, 0.0))),
        "snoozes": msgspec.Raw(msgspec.msgpack.encode(3)),
        "unknown_since": msgspec.Raw(msgspec.msgpack.encode(1.7e9)),
    },
    history=[Failure(1.7e9, 1, "failed", "ValueError", "no", "Traceback …", "w")],
)
SAMPLES = (encode_job(_SAMPLE), encode_job(_FULL), encode_job(corrupt_job(b"\xc1", 1.7e9)))

_FIELDS = (
    st.sampled_from((1, 1, 1, 2, 300, 0, -1)),
    st.integers(-1, 10),
    st.binary(min_size=15, max_size=17) | st.just(bytes(16)),
    texts,
    texts,
    st.binary(max_size=30),
    floats,
    integers_64,
    integers_64,
    st.none() | integers_64,
    integers_64,
    st.none() | floats,
    st.none() | st.dictionaries(st.sampled_from(("retry", "snoozes", "unknown_since", "x")), packed, max_size=3),
    st.none() | st.lists(st.tuples(floats, integers_64, texts, texts, texts, texts, texts), max_size=2),
)

envelopes = st.sampled_from(SAMPLES) | damaged(SAMPLES) | noise | huge | arrays(*_FIELDS)


def judge(envelope: bytes) -> bool:
    """A job that can be judged whatever befalls it, or an error; and then its bytes are kept, with the reason."""
    letter = DeadLetter(bytes(16), 1.7e9, envelope)
    try:
        job = decode_job(envelope)
    except SerializationError as error:
        _set_aside(envelope, error)
        assert isinstance(error, NewerEnvelope) or _dead_job(letter).unreadable
        return False
    again = encode_job(job)
    assert encode_job(read_job(again)) == again
    entry = routed_entry(envelope)
    assert (entry.id, entry.queue, entry.priority, entry.envelope) == (job.id, job.queue, job.priority, envelope)
    _dead_job(letter)
    _survives(job)
    return True


def _set_aside(envelope: bytes, error: SerializationError) -> None:
    outcome = set_aside(0, envelope, error, "w")
    if outcome.kind == Kind.RETRY:
        assert isinstance(error, NewerEnvelope)
        assert outcome.entry.envelope == envelope
        return
    assert outcome.kind == Kind.DEAD
    kept = decode_job(outcome.entry.envelope)
    assert kept.payload == envelope
    assert kept.history is not None
    assert kept.history[-1].message


def _survives(job: Job) -> None:
    """Every verdict can be stored and read again."""
    error = ValueError("no")
    failure = failure_of(job, "failed", error, "w")
    is_suspect(job)
    header(job, "x", int)
    policy = carried_policy(job) or DEFAULT_POLICY
    for verdict in (
        after_failure(job, error, failure, policy, None, Random(1)),
        after_loss(job, failure, alone=True, evidence=True),
        after_unknown(job, failure, dead=False),
    ):
        assert verdict.delay_s >= 0
        assert read_job(outcome_of(0, verdict).entry.envelope).id == job.id
    encode_job(requeued(job))


SURFACE = Surface(name="envelopes", inputs=envelopes, opened=plain(judge), weight=30, offspring=9)
