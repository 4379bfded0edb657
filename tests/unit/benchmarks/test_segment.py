"""Rates of streams, whose requests are under way together."""

import time

import pytest

from benchmarks.segment import Segment
from benchmarks.timing import Span

IN_FLIGHT = 8


class ConstantServer:
    """A stream of a server of a constant rate that answers so many requests at a time.

    Sent and answered are the moments of the server's plan, whenever this thread wakes up, so
    that what is measured does not depend on how busy the machine is.
    """

    def __init__(self, rate: float, items: int, at_a_time: int) -> None:
        self._rate, self._items, self._at_a_time = rate, items, at_a_time

    def __call__(self, segment: Segment, client: int) -> None:
        segment.keeps_in_flight(client, IN_FLIGHT)
        sent = [time.perf_counter()] * IN_FLIGHT
        batch_s = self._at_a_time * self._items / self._rate
        answered = sent[0]
        while segment.running:
            answered += batch_s
            time.sleep(max(0.0, answered - time.perf_counter()))
            for _ in range(self._at_a_time):
                segment.done(client, Span(sent.pop(0), answered, self._items))
                sent.append(answered)


@pytest.mark.alone
@pytest.mark.parametrize("at_a_time", [1, 4, 8])
@pytest.mark.parametrize(("rate", "items"), [(20, 1), (120, 4), (1000, 16)])
def test_a_stream_has_the_rate_of_its_server(rate: float, items: int, at_a_time: int) -> None:
    measured = Segment([ConstantServer(rate, items, at_a_time)], None).run(0.25)
    assert measured.rate == pytest.approx(rate, rel=0.02)


@pytest.mark.alone
@pytest.mark.parametrize("clients", [1, 3])
def test_clients_of_one_call_at_a_time_have_the_sum_of_their_rates(clients: int) -> None:
    def ask(segment: Segment, client: int) -> None:
        ended = time.perf_counter()
        while segment.running:
            began, ended = ended, ended + 0.04
            time.sleep(max(0.0, ended - time.perf_counter()))
            segment.done(client, Span(began, ended, 2))

    assert Segment([ask] * clients, None).run(0.1).rate == pytest.approx(50 * clients, rel=0.02)
