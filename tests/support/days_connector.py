"""A connector that fails if the requested period holds certain days."""

from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import numpy as np

from fonte import arrow
from support.answers import arrow_stream
from support.faulty import http


class Connector:
    """Answers a sample per interval of the requested period, or a fault if the period holds a faulty day."""

    def __init__(self, fault=None, faulty=lambda first, last: False, interval=timedelta(hours=1)):
        self.asked = []
        self._fault, self._faulty, self._interval = fault, faulty, interval

    def answer(self, request):
        asked = parse_qs(urlsplit(request.split()[1]).query)
        start, end = (datetime.fromisoformat(asked[f"{bound}_timestamp"][0]) for bound in ("start", "end"))
        first, last = start.date(), (end - self._interval).date()
        self.asked.append((first, last))
        if self._faulty(first, last):
            return self._fault
        moments = np.arange(start.replace(tzinfo=None), end.replace(tzinfo=None), self._interval).astype("M8[us]")
        body = arrow_stream({"timestamp": moments, "power": np.arange(len(moments)) / 7}, rows_a_batch=10**6)
        return http(body=body, content_type=arrow.MEDIA_TYPE)


def holds(day):
    """Make a function that tells from its first and last day whether a period holds this day."""
    return lambda first, last: first <= day <= last
