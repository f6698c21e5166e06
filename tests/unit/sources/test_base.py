from stockstream.errors import SourceError
from stockstream.sources.base import SourceUnavailable


def test_what_trying_again_can_mend_says_so() -> None:
    assert issubclass(SourceUnavailable, SourceError)
    assert SourceUnavailable.retriable and not SourceError.retriable


def test_what_only_the_settings_can_mend_ends_a_source() -> None:
    assert SourceError("the key is wrong", stops=True).stops and str(SourceError("the key is wrong", stops=True)) == "the key is wrong"
    assert not SourceError("no licence").stops and not SourceUnavailable("no answer").stops
