"""A connector that fails where the asked period holds certain days."""

from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import numpy as np

from fonte import arrow
from support.answers import arrow_stream
from support.faulty import http


class Connector:
    """Answers with a sample each hour of the asked period, but with a fault where the period holds a faulty day."""

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
    """Tell for the first and the last day of a period whether it holds this one."""
    return lambda first, last: first <= day <= last
