"""How long to train and how fast: passes over the log from its size, rates from the requests of a step."""

from __future__ import annotations

REFERENCE_LOG = 50_000
"""Training requests at which two passes are right."""
_POWER = 0.4
MOST_PASSES = 4
"""With eight, the towers memorise: on 2,000 requests the entropy of the validation part doubles."""


MOST_FACTOR = 4.0


def passes(requests: int) -> int:
    """Passes over a log of so many training requests, from 1 to 4.

    Two at 50,000 requests, times (50,000 / requests)^0.4: a short log is seen more often. Fitted to logs of
    2,000 to 60,000 requests, see `docs/measurements.md`.

    Example::

        assert [passes(n) for n in (1_600, 10_000, 50_000, 1_000_000)] == [4, 4, 2, 1]
    """
    return min(max(round(2 * (REFERENCE_LOG / max(requests, 1)) ** _POWER), 1), MOST_PASSES)


def rate_factor(requests_a_step: int, reference: int | None) -> float:
    """What AdamW's rates are multiplied by where a step of all ranks has other requests than the rates are stated for.

    The square root of their ratio keeps the noise of a pass as it was (Malladi et al., arXiv 2205.10287). The weight decay is
    multiplied by it too, so that a pass decays as much as before. Tables, whose rows are mostly in one request of a step, keep
    their rate. The root is measured up to four times the reference; past sixteen times it the rates stay where they are, at four
    times those stated.

    Args:
        requests_a_step: of all ranks together.
        reference: requests a step that the rates are stated for; None: 1, the rates as they are.
    """
    return 1.0 if reference is None else min(float((requests_a_step / reference) ** 0.5), MOST_FACTOR)
