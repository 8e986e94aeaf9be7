"""A clock that runs as fast as the computer can, and servers of known capacity on it."""

import heapq
import itertools
import math
from concurrent.futures import Future
from contextlib import contextmanager

SERVICE = 0.01  # seconds a query


class Simulation:
    """Time passes in ``sleep`` alone; what is due by then happens at its own moment."""

    def __init__(self, oversleep=0.0):
        self.now = 0.0
        self.oversleep = oversleep
        self._due, self._order = [], itertools.count()

    def clock(self):
        return self.now

    def sleep(self, seconds):
        end = self.now + seconds + self.oversleep
        while self._due and self._due[0][0] <= end:
            moment, _, future = heapq.heappop(self._due)
            self.now = moment
            if future.set_running_or_notify_cancel():
                future.set_result(None)
        self.now = end

    def answer_at(self, moment):
        future = Future()
        heapq.heappush(self._due, (moment, next(self._order), future))
        return future


class OneServer:
    """Answers one query after the other, the n-th in ``seconds(n)``."""

    def __init__(self, simulation, seconds):
        self.simulation, self.seconds = simulation, seconds
        self.free, self.futures = 0.0, []

    def submit(self, query):
        number = len(self.futures)
        self.free = max(self.free, self.simulation.now) + self.seconds(number)
        self.futures.append(self.simulation.answer_at(self.free))
        return self.futures[-1]

    def settled(self):
        self.free = 0.0  # what was cancelled takes no more time
        return True


@contextmanager
def opened(service):
    yield service


def waited(arrivals, seconds):
    """Return each query's time from arrival to answer: Lindley's recursion, written from the formula."""
    latencies, free = [], 0.0
    for number, arrival in enumerate(arrivals):
        free = max(free, arrival) + seconds(number)
        latencies.append(free - arrival)
    return latencies


def waiting_share(t, rate):
    """P(W <= t) of M/D/1 in the long run (Erlang 1909; Tijms, A First Course in Stochastic Models, 9.5.1)."""
    terms = range(int(t / SERVICE) + 1)
    total = sum(
        (rate * (k * SERVICE - t)) ** k / math.factorial(k) * math.exp(-rate * (k * SERVICE - t)) for k in terms
    )
    return (1 - rate * SERVICE) * total


def theoretical_p99(rate):
    """The p99 of the time from arrival to answer, by bisection of the waiting time's distribution."""
    low, high = 0.0, 30 * SERVICE
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if waiting_share(middle, rate) < 0.99 else (low, middle)
    return SERVICE + high
