from stockstream.errors import SourceError
from stockstream.sources.base import SourceUnavailable


def test_what_trying_again_can_mend_says_so() -> None:
    assert issubclass(SourceUnavailable, SourceError)
    assert SourceUnavailable.retriable and not SourceError.retriable
