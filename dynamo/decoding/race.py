"""Several decode streams in one thread, each at its own measured pace.

The next step is always of the stream with the least model time so far, so at every moment each is as far as
it would be alone on this machine. Nothing here waits or measures: model time is what the records say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dynamo.sampling.records import StepRecord


def race(lanes: Mapping[str, Iterator[StepRecord]]) -> Iterator[tuple[str, StepRecord | None]]:
    """Yields (lane, record) for every pass, and (lane, None) when a lane is over.

    Ties go to the lane named first. Closing the race closes the streams, as does an error of one of them.
    """
    seconds = dict.fromkeys(lanes, 0.0)
    try:
        while seconds:
            lane = min(seconds, key=seconds.__getitem__)
            record = next(lanes[lane], None)
            if record is None:
                del seconds[lane]
            else:
                seconds[lane] += record.seconds
            yield lane, record
    finally:
        for stream in lanes.values():
            stream.close()
